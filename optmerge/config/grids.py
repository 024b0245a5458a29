"""The word ``searched`` for a setting of a method: which values the driver then chooses among.

    with_grids({"name": "ties", "density": "searched"}, TiesConfig)      # {"name": "ties", "density": [0.05, ...]}

A method declares with `Searched` over which range, or which values of its paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from optmerge.config.methods import METHOD_CONFIGS, MethodSettings, Searched

POINTS = 5  # values of a setting that is searched, where neither the search file nor a paper lists any
SEARCHED = "searched"


def grid_of(how: Searched, *, whole_numbers: bool = False) -> list[float]:
    """The values that ``searched`` stands for: the paper's grid, or `POINTS` over the declared range.

    Args:
        how: What the method declares.
        whole_numbers: Whether the setting takes no others.

    >>> grid_of(Searched(0.1, 1.0))
    [0.1, 0.325, 0.55, 0.775, 1.0]
    >>> grid_of(Searched(1.0, 10000.0, log=True), whole_numbers=True)
    [1, 10, 100, 1000, 10000]
    """
    values = list(how.grid)
    if not values:
        low, high = (math.log(how.low), math.log(how.high)) if how.log else (how.low, how.high)
        steps = [low + (high - low) * step / (POINTS - 1) for step in range(POINTS)]
        values = [float(f"{math.exp(step) if how.log else step:.6g}") for step in steps]
    return sorted({round(value) if whole_numbers else value for value in values})


def spelled_out(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries of a choice with lists in the place of ``searched``.

    Raises:
        ValueError: A setting does not say how it is searched.
    """
    return [
        with_grids(entry, METHOD_CONFIGS[entry["name"]]) if entry.get("name") in METHOD_CONFIGS else entry
        for entry in entries
    ]


def with_grids(entry: Mapping[str, Any], model: type[MethodSettings]) -> dict[str, Any]:
    """A method's settings with lists in the place of ``searched``.

    Raises:
        ValueError: A setting does not say how it is searched.
    """
    tuned = model.tuned()
    return {
        key: stated_grid(f"{model.method_name()}.{key}", tuned, key, whole_numbers=takes_whole_numbers(model, key))
        if value == SEARCHED
        else value
        for key, value in entry.items()
    }


def stated_grid(where: str, tuned: Mapping[str, Searched], key: str, *, whole_numbers: bool = False) -> list[float]:
    """The values of a setting that is ``searched``.

    Args:
        where: What errors call it.
        tuned: Setting -> how the method declares that it is searched.
        key: The setting.
        whole_numbers: Whether it takes no others.

    Raises:
        ValueError: The method does not declare it.
    """
    if key not in tuned:
        known = f"those that do: {', '.join(tuned)}" if tuned else "none of its settings does"
        raise ValueError(
            f"{where} is {SEARCHED}, and it does not say over which values ({known}); list them: {key}: [...]"
        )
    return grid_of(tuned[key], whole_numbers=whole_numbers)


def takes_whole_numbers(model: type[MethodSettings], key: str) -> bool:
    """Whether a setting of a method is a whole number."""
    annotation = model.model_fields[key].annotation
    return annotation in (int, int | None)
