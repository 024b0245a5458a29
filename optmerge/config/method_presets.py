"""A preset for every method, made from what it declares: what is searched of it, its paper, its cost, the command.

    python -m optmerge.config.method_presets search_spaces/methods      # writes one for each; a test holds them equal

``methods: ties`` in a search file stands for such a file. A method that is a sum of parts gives every expert
coefficients of its own, any other one coefficient for all. Settings that the method declares as tunable are chosen by
the driver, as long as they make no more than `MOST` combinations.
"""

from __future__ import annotations

import math
import sys
import textwrap
from pathlib import Path
from typing import Any

import yaml

from optmerge.atomic import atomic_write
from optmerge.config.alternatives import CHOICE
from optmerge.config.grids import SEARCHED, grid_of, takes_whole_numbers
from optmerge.config.methods import METHOD_CONFIGS
from optmerge.config.methods.base import MethodSettings

MOST = 32  # combinations of values that a preset makes; a search file may have more (`optmerge.config.alternatives`)
WIDTH = 120


def preset_content(config: type[MethodSettings]) -> dict[str, Any]:
    """What a method's preset puts into a search file: ``method``, ``methods`` or ``directions``.

    >>> from optmerge.config.methods import DareConfig, IsoCConfig
    >>> preset_content(DareConfig)
    {'methods': [{'name': 'dare', 'drop': 'searched'}]}
    >>> preset_content(IsoCConfig)
    {'directions': ['iso-c']}
    """
    name, values = config.method_name(), _searched(config)
    entry = {"name": name, **dict.fromkeys(values, SEARCHED)}
    if config.facts.linear:
        return {"methods": [entry]} if values else {"method": name}
    return {"directions": [{"name": CHOICE, "methods": [entry]}] if values else [name]}


def preset_text(config: type[MethodSettings]) -> str:
    """A method's preset as a file."""
    name, facts = config.method_name(), config.facts
    values = _searched(config)
    times = math.prod(values.values())
    made = "a part per expert" if facts.linear else "a delta"
    choices = f", for each of {times} choices of {_listed(list(values))}" if values else ""
    cost = (
        f"{facts.cost}{choices}, before the search; then {made}{' per choice' if values else ''} in the cache, 4 bytes "
    )
    cost += "a parameter."
    what = " ".join((config.__doc__ or "").partition("\n\n")[0].split())
    rest = [key for key in config.tuned() if key not in values]
    lines = [
        *textwrap.wrap(f"{name}: {what}", WIDTH - 2),
        "",
        *textwrap.wrap(f"Paper: {facts.paper}.", WIDTH - 2, subsequent_indent="  "),
        *textwrap.wrap(f"Cost: {cost}", WIDTH - 2, subsequent_indent="  "),
        *([f"Not searched, for that would make too many choices: {_listed(rest)}."] if rest else []),
        f"Run: optmerge search search.yaml --set methods={name} --set driver={'cma' if values else 'adam'}",
    ]
    comment = "".join(f"# {line}".rstrip() + "\n" for line in lines)
    body = yaml.safe_dump(preset_content(config), sort_keys=False, width=WIDTH, default_flow_style=None)
    return comment + body


def _searched(config: type[MethodSettings]) -> dict[str, int]:
    """The settings that are searched, as long as they make no more than `MOST` choices, and how many values of each."""
    found: dict[str, int] = {}
    for key, how in config.tuned().items():
        count = len(grid_of(how, whole_numbers=takes_whole_numbers(config, key)))
        if math.prod(found.values()) * count <= MOST:
            found[key] = count
    return found


def _listed(words: list[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for method in METHOD_CONFIGS.values():
        atomic_write(folder / f"{method.method_name()}.yaml", preset_text(method))
