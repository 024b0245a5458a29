"""From the search file's ``directions`` and ``method`` to the directions of a search.

searched = expand_directions(config.directions, ["sentiment", "topics"], config.method)
known = known_directions(searched, config.baselines.methods, ["sentiment", "topics"])
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

from optmerge.config.methods import MethodConfig, TaskArithmeticConfig
from optmerge.errors import ConfigError
from optmerge.merging.recipe import Direction


def expand_directions(
    directions: Sequence[str | MethodConfig], experts: Sequence[str], method: MethodConfig | None = None
) -> tuple[Direction, ...]:
    """The configured list with "experts" replaced by one direction per expert.

    A method's direction is called after it; where one of that name is there already, its settings that are not the
    usual ones stand behind: ``ties[density=0.5]``.

    Args:
        directions: "experts", and whole methods.
        experts: Their names.
        method: What "experts" stands for: the task vectors (task_arithmetic, or None), or what a method that is linear
            in per-expert scales makes of each of them.

    Raises:
        ConfigError: A direction appears twice, or an expert is called like a method.
    """
    expanded: list[Direction] = []
    for entry in directions:
        if not isinstance(entry, str):
            taken = [direction.name for direction in expanded]
            expanded.append(Direction(_method_name(entry, taken, experts), "method", entry))
        elif any(direction.kind != "method" for direction in expanded):
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
            taken = [direction.name for direction in known]
            known.append(Direction(_method_name(entry, taken, experts), "method", entry))
    return tuple(known)


def _method_name(method: MethodConfig, taken: Collection[str], experts: Collection[str]) -> str:
    if method.name in experts:
        raise ConfigError(
            f"experts.{method.name}: an expert is called like the method {method.name}, which is a direction or a "
            "baseline of this search too. Give the expert another name."
        )
    if method.name not in taken:
        return method.name
    usual = type(method)().model_dump()
    settings = [f"{key}={_shown(value)}" for key, value in method.model_dump().items() if value != usual[key]]
    name = f"{method.name}[{','.join(settings)}]"
    if not settings or name in taken:
        raise ConfigError(
            f"directions: {method.name} appears more than once with the same settings; each direction may stand once."
        )
    return name


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
