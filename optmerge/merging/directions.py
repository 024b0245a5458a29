"""From the search file's ``directions`` and ``method`` to the directions of a search.

searched = expand_directions(config.directions, ["sentiment", "topics"], config.method)
known = known_directions(searched, config.baselines.methods, ["sentiment", "topics"])
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace

from optmerge.config.alternatives import CHOICE, OneOfConfig
from optmerge.config.methods import CustomMethodConfig, MethodConfig, TaskArithmeticConfig
from optmerge.config.methods.own import title, told_settings
from optmerge.config.spectral import DirectionConfig, SpectralConfig
from optmerge.errors import ConfigError
from optmerge.merging.recipe import Direction


def expand_directions(
    directions: Sequence[str | DirectionConfig | OneOfConfig],
    experts: Sequence[str],
    method: MethodConfig | None = None,
) -> tuple[Direction, ...]:
    """The configured list with "experts" replaced by one direction per expert.

    A method's direction is called after it; where there is one of that name already, what differs from its settings
    stands behind: ``ties[density=0.5]``. Bands are called after their number and expert, ``spectral.1:sentiment``, the
    first bands of all experts before the second ones. A choice among whole methods holds one place, `CHOICE`, which
    `optmerge.merging.alternatives` fills.

    Args:
        directions: "experts", whole methods, bands, and a choice.
        experts: Their names.
        method: What "experts" stands for: the task vectors (task_arithmetic, or None), or what a method that is linear
            in per-expert scales makes of each of them.

    Raises:
        ConfigError: A direction appears twice, or an expert is called like a method.
    """
    expanded: list[Direction] = []
    for entry in directions:
        if isinstance(entry, OneOfConfig):
            expanded.append(Direction(CHOICE, "method"))
        elif isinstance(entry, SpectralConfig):
            expanded += _bands(_method_name(entry, expanded, experts), entry, experts)
        elif not isinstance(entry, str):
            expanded.append(Direction(_method_name(entry, expanded, experts), "method", entry))
        elif any(direction.kind == "expert" or _linear_part(direction) for direction in expanded):
            raise ConfigError("directions: 'experts' appears more than once; each direction may stand once.")
        elif method is None or isinstance(method, TaskArithmeticConfig):
            expanded += [Direction(name, "expert") for name in experts]
        else:
            expanded += [Direction(f"{title(method)}:{name}", "part", method, name) for name in experts]
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
        ConfigError: An expert is called like a method, or a user's method cannot be used.
    """
    known = [Direction(name, "expert") for name in experts]
    known += [direction for direction in searched if direction.kind != "expert"]
    for entry in methods:
        if all(direction.kind != "method" or direction.config != entry for direction in known):
            known.append(Direction(_method_name(entry, known, experts), "method", entry))
    require_usable(known, experts)
    return tuple(known)


def require_usable(directions: Sequence[Direction], experts: Sequence[str]) -> None:
    """Load the users' methods among some directions, and see that what is to be a sum of parts is one.

    Args:
        directions: Any.
        experts: Their names.

    Raises:
        ConfigError: A file or class is missing or cannot be used, or parts are wanted of a method that has none.
    """
    own = [direction for direction in directions if isinstance(direction.config, CustomMethodConfig)]
    if not own:
        return
    from optmerge.merging.methods import build_method

    for direction in own:
        assert direction.config is not None
        if not build_method(direction.config, experts).linear and direction.kind == "part":
            name = title(direction.config)
            raise ConfigError(
                f"{name} is a WholeMethod, so it has no parts to scale. Search along the whole of it, with directions: "
                f"[experts, {{name: custom, path: ...:{name}}}], or make it a PartsMethod."
            )


def with_hash(direction: Direction) -> Direction:
    """A direction whose method names the content of its file, if it is a user's; for a recipe.

    Raises:
        ConfigError: The file is not there any more.
    """
    config = direction.config
    if not isinstance(config, CustomMethodConfig) or config.sha256 is not None:
        return direction
    return replace(direction, config=config.model_copy(update={"sha256": config.content}))


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
    name = title(method)
    if name in experts:
        raise ConfigError(
            f"experts.{name}: an expert is called like the method {name}, which is a direction or a "
            "baseline of this search too. Give the expert another name."
        )
    others = [other for other in others if other.kind == "method" or other.band]
    same = [other for other in others if other.config == method]
    if same:
        raise ConfigError(
            f"directions: {name} appears more than once with the same settings; each direction may stand once."
        )
    first = next((other.config for other in others if other.whole == name), None)
    if first is None:
        return name
    usual = told_settings(first)
    changed = [f"{key}={_shown(value)}" for key, value in told_settings(method).items() if value != usual.get(key)]
    return f"{name}[{','.join(changed)}]"


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
