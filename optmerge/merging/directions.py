"""From the search file's ``directions`` and ``method`` to the directions of a search.

searched = expand_directions(config.directions, ["sentiment", "topics"], config.method)
known = known_directions(searched, config.baselines.methods, ["sentiment", "topics"])
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

from optmerge.config.methods import MethodConfig, TaskArithmeticConfig
from optmerge.config.spectral import DirectionConfig, SpectralConfig
from optmerge.errors import ConfigError
from optmerge.merging.recipe import Direction


def expand_directions(
    directions: Sequence[str | DirectionConfig], experts: Sequence[str], method: MethodConfig | None = None
) -> tuple[Direction, ...]:
    """The configured list with "experts" replaced by one direction per expert.

    A method's direction is called after it; where there is one of that name already, what differs from its settings
    stands behind: ``ties[density=0.5]``. Bands are called after their number and expert, ``spectral.1:sentiment``, the
    first bands of all experts before the second ones.

    Args:
        directions: "experts", whole methods, and bands.
        experts: Their names.
        method: What "experts" stands for: the task vectors (task_arithmetic, or None), or what a method that is linear
            in per-expert scales makes of each of them.

    Raises:
        ConfigError: A direction appears twice, or an expert is called like a method.
    """
    expanded: list[Direction] = []
    for entry in directions:
        if isinstance(entry, SpectralConfig):
            expanded += _bands(_method_name(entry, expanded, experts), entry, experts)
        elif not isinstance(entry, str):
            expanded.append(Direction(_method_name(entry, expanded, experts), "method", entry))
        elif any(direction.kind == "expert" or _linear_part(direction) for direction in expanded):
            raise ConfigError("directions: 'experts' appears more than once; each direction may stand once.")
        elif method is None or isinstance(method, TaskArithmeticConfig):
            expanded += [Direction(name, "expert") for name in experts]
        else:
            expanded += [Direction(f"{method.name}:{name}", "part", method, name) for name in experts]
    return tuple(expanded)


def known_directions(
    searched: Sequence[Direction], methods: Sequence[MethodConfig], experts: Sequence[str]
) -> tuple[Direction, ...]:
    """All directions that a search has to do with, those of `expand_directions` under the same names.

    Args:
        searched: What gets coefficients.
        methods: Whole methods that are scored as baselines.
        experts: Their names.

    Returns:
        Every expert's task vector, which teachers and baselines are made from; what else is searched; and the methods
        among the baselines that are not.

    Raises:
        ConfigError: An expert is called like a method.
    """
    known = [Direction(name, "expert") for name in experts]
    known += [direction for direction in searched if direction.kind != "expert"]
    for entry in methods:
        if all(direction.kind != "method" or direction.config != entry for direction in known):
            known.append(Direction(_method_name(entry, known, experts), "method", entry))
    return tuple(known)


def _bands(name: str, config: SpectralConfig, experts: Sequence[str]) -> list[Direction]:
    owners = list(experts) if config.by_expert else [""]
    return [
        Direction(f"{name}.{band}:{owner}" if owner else f"{name}.{band}", "part", config, owner, band=band)
        for band in range(1, config.bands + 1)
        for owner in owners
    ]


def _linear_part(direction: Direction) -> bool:
    """Whether it is one of those that "experts" can stand for."""
    return direction.kind == "part" and not direction.band


def _method_name(method: DirectionConfig, others: Sequence[Direction], experts: Collection[str]) -> str:
    if method.name in experts:
        raise ConfigError(
            f"experts.{method.name}: an expert is called like the method {method.name}, which is a direction or a "
            "baseline of this search too. Give the expert another name."
        )
    others = [other for other in others if other.kind == "method" or other.band]
    same = [other for other in others if other.config == method]
    if same:
        raise ConfigError(
            f"directions: {method.name} appears more than once with the same settings; each direction may stand once."
        )
    first = next((other.config for other in others if other.whole == method.name), None)
    if first is None:
        return method.name
    usual = first.model_dump()
    changed = [f"{key}={_shown(value)}" for key, value in method.model_dump().items() if value != usual[key]]
    return f"{method.name}[{','.join(changed)}]"


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
