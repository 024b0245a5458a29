"""From the search file's ``directions`` and ``method`` to the directions of a search.

searched = expand_directions(config.directions, ["sentiment", "topics"], config.method)
"""

from __future__ import annotations

from collections.abc import Sequence

from optmerge.config.methods import MethodConfig, TaskArithmeticConfig
from optmerge.errors import ConfigError
from optmerge.merging.recipe import Direction


def expand_directions(
    directions: Sequence[str | MethodConfig], experts: Sequence[str], method: MethodConfig | None = None
) -> tuple[Direction, ...]:
    """The configured list with "experts" replaced by one direction per expert.

    Args:
        directions: "experts", and whole methods.
        experts: Their names.
        method: What "experts" stands for: the task vectors (task_arithmetic, or None), or what a method that is linear
            in per-expert scales makes of each of them.

    Raises:
        ConfigError: A direction appears twice.
    """
    expanded: list[Direction] = []
    for entry in directions:
        if not isinstance(entry, str):
            expanded.append(Direction(entry.name, "method", entry))
        elif method is None or isinstance(method, TaskArithmeticConfig):
            expanded += [Direction(name, "expert") for name in experts]
        else:
            expanded += [Direction(f"{method.name}:{name}", "part", method, name) for name in experts]
    names = [direction.name for direction in expanded]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"directions: {name!r} appears {names.count(name)} times; each direction may stand once.")
    return tuple(expanded)
