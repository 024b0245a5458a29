"""Methods among which a search chooses, and the values of their settings.

    first, second = read_alternatives([{"name": "task_arithmetic"}, {"name": "ties-split", "density": [0.1, 0.2, 0.4]}])
    second.configs[(2,)].density          # 0.4

A setting that has a list is searched over its values: numbers in their order, anything else as names without one.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from optmerge.config.methods import LINEAR_METHODS, METHOD_CONFIGS, MethodConfig
from optmerge.errors import did_you_mean

MOST = 64  # settings of all methods together; each one's parts are made before the search, and kept in files


@dataclass(frozen=True)
class Varied:
    """A setting of a method that is searched.

    Attributes:
        key: Its name in the method.
        values: What it may be.
        ordered: Whether these are numbers in rising order.
        usual: Which of them the method has by default, or the first.
    """

    key: str
    values: tuple[Any, ...]
    ordered: bool
    usual: int


@dataclass(frozen=True)
class Alternative:
    """A method with what of its settings is searched.

    Attributes:
        name: The method's.
        varied: The settings that are searched, in the order of the file.
        configs: One value of each of them, by position -> the method with these.
    """

    name: str
    varied: tuple[Varied, ...]
    configs: Mapping[tuple[int, ...], MethodConfig]

    def label(self, positions: Sequence[int]) -> str:
        """What the method is called with values at these positions: ``ties-split[density=0.2]``."""
        shown = [
            f"{varied.key}={value if isinstance(value, str) else json.dumps(value)}"
            for varied, position in zip(self.varied, positions, strict=True)
            for value in [varied.values[position]]
        ]
        return f"{self.name}[{','.join(shown)}]" if shown else self.name


def read_alternative(entry: Mapping[str, Any]) -> Alternative:
    """An entry of ``methods``.

    Raises:
        ValueError: There is no such method or setting, or the values do not fit; the message says what would.
    """
    name = entry.get("name")
    if name not in LINEAR_METHODS:
        hint = did_you_mean(str(name), LINEAR_METHODS)
        raise ValueError(
            f"{name} is not a sum of one part per expert, so there is nothing for coefficients to scale; expected one "
            f"of {', '.join(LINEAR_METHODS)}.{hint}"
        )
    if entry.get("weights") is not None:
        raise ValueError(f"the weights of {name} are what is searched; leave them out")
    model = METHOD_CONFIGS[name]
    lists = {key: value for key, value in entry.items() if isinstance(value, list)}
    varied = tuple(_varied(f"{name}.{key}", key, values, model.model_fields) for key, values in lists.items())
    configs: dict[tuple[int, ...], MethodConfig] = {}
    for positions in itertools.product(*(range(len(setting.values)) for setting in varied)):
        chosen = {v.key: v.values[position] for v, position in zip(varied, positions, strict=True)}
        try:
            configs[positions] = model.model_validate({**entry, **chosen})  # type: ignore[assignment]
        except ValidationError as problem:
            first = problem.errors()[0]
            raise ValueError(f"{name}.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return Alternative(name, varied, configs)


def read_alternatives(entries: Sequence[Mapping[str, Any]]) -> tuple[Alternative, ...]:
    """The entries of ``methods``.

    Raises:
        ValueError: See `read_alternative`; a method stands twice, there is nothing to choose, or too much.
    """
    found = tuple(map(read_alternative, entries))
    names = [alternative.name for alternative in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} appears more than once; list the values of its settings in one entry")
    total = sum(len(alternative.configs) for alternative in found)
    if total == 1:
        raise ValueError(f"there is nothing to choose; use method: {names[0]}, or list another method or more values")
    if total > MOST:
        raise ValueError(
            f"methods and values make {total} combinations, and each one's parts are made and kept in files before the "
            f"search; expected at most {MOST}. List fewer values"
        )
    return found


def alternative_problems(data: Mapping[str, Any]) -> list[str]:
    """What of a search does not go with a choice among methods, drivers apart.

    Args:
        data: A search as plain data; parts that are malformed are passed over.
    """
    if not data.get("methods"):
        return []
    problems = []
    method, directions = data.get("method"), data.get("directions", ["experts"])
    name = method.get("name") if isinstance(method, Mapping) else method
    if name not in (None, "task_arithmetic"):
        problems.append(f"method is {name}, and methods lists what is chosen among; put it there, or take one out.")
    if isinstance(directions, list) and "experts" not in directions:
        problems.append("methods says what 'experts' among the directions stands for, and directions has no 'experts'.")
    return problems


def _varied(where: str, key: str, values: list[Any], fields: Mapping[str, Any]) -> Varied:
    if len(values) < 2:
        raise ValueError(f"{where} is a list of {len(values)}; give one value as it is, or list two or more")
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    ordered = len(numbers) == len(values)
    if ordered and sorted(set(numbers)) != numbers:
        raise ValueError(f"{where} is {values}; expected different numbers in rising order")
    if not ordered and len({json.dumps(value) for value in values}) != len(values):
        raise ValueError(f"{where} is {values}; expected different values")
    default = fields[key].default if key in fields else None
    return Varied(key, tuple(values), ordered, values.index(default) if default in values else 0)
