"""Methods among which a search chooses, and the values of their settings.

    first, second = read_alternatives([{"name": "task_arithmetic"}, {"name": "ties-split", "density": [0.1, 0.2, 0.4]}])
    second.configs[(2,)].density          # 0.4

A setting that has a list is searched over its values: numbers in their order, anything else as names without one. The
word ``searched`` stands for the list that the method declares for the setting (`optmerge.config.grids`).

A choice is among parts of methods (``methods`` in the place of ``method``: each expert keeps its own coefficients) or
among whole methods (``{name: one-of, methods: [...]}`` among the directions: one coefficient for what is chosen).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from optmerge.config.base import Strict, named
from optmerge.config.grids import SEARCHED, spelled_out, stated_grid, with_grids
from optmerge.config.methods import (
    LINEAR_METHODS,
    METHOD_CONFIGS,
    MethodConfig,
    MethodSettings,
)
from optmerge.config.methods.own import CustomMethodConfig, declared, title
from optmerge.errors import ConfigError, did_you_mean

MOST = 64  # settings of all methods together; each one's deltas are made before the search, and kept in files
CHOICE = "one-of"
CHOOSABLE = (*METHOD_CONFIGS, "custom")
IN_PARTS = (*LINEAR_METHODS, "custom")
"""Methods that may be a sum of one part per expert; a custom one says so in its file."""


@dataclass(frozen=True)
class Varied:
    """A setting of a method that is searched.

    Attributes:
        key: Its name in the method.
        values: What it may be.
        ordered: Whether these are numbers in rising order.
        usual: Which of them the method has by default, or is nearest to that; else the first.
    """

    key: str
    values: tuple[Any, ...]
    ordered: bool
    usual: int


@dataclass(frozen=True)
class Alternative:
    """A method with what of its settings is searched.

    Attributes:
        method: Its name in the search file.
        name: What it is called: the same, or a user's class.
        varied: The settings that are searched, in the order of the file.
        configs: One value of each of them, by position -> the method with these.
        whole: Whether it is chosen as a whole, with one coefficient, and not in parts.
    """

    method: str
    name: str
    varied: tuple[Varied, ...]
    configs: Mapping[tuple[int, ...], MethodConfig]
    whole: bool = False

    def label(self, positions: Sequence[int]) -> str:
        """What the method is called with values at these positions: ``ties-split[density=0.2]``."""
        shown = [
            f"{varied.key}={value if isinstance(value, str) else json.dumps(value)}"
            for varied, position in zip(self.varied, positions, strict=True)
            for value in [varied.values[position]]
        ]
        return f"{self.name}[{','.join(shown)}]" if shown else self.name

    def variable(self, varied: Varied) -> str:
        """What the variable of a setting is called: ``ties-split.density``, ``custom.Shrunk.share``."""
        owner = self.name if self.method == self.name else f"{self.method}.{self.name}"
        return f"{owner}.{varied.key}"


def read_alternative(entry: Mapping[str, Any], *, whole: bool = False) -> Alternative:
    """An entry of a choice.

    Raises:
        ValueError: There is no such method or setting, or the values do not fit; the message says what would.
    """
    method = entry.get("name")
    allowed = CHOOSABLE if whole else IN_PARTS
    if method not in allowed:
        hint = did_you_mean(str(method), allowed)
        if method in CHOOSABLE:
            raise ValueError(
                f"{method} is not a sum of one part per expert, so there is nothing for coefficients to scale; "
                f"expected one of {', '.join(allowed)}. Choose among whole methods instead, with `directions: "
                f"[experts, {{name: {CHOICE}, methods: [{method}, ...]}}]`."
            )
        raise ValueError(f"there is no method {method}; expected one of {', '.join(allowed)}.{hint}")
    if not whole and entry.get("weights") is not None:
        raise ValueError(f"the weights of {method} are what is searched; leave them out")
    if method == "custom":
        return _custom_alternative(entry, whole=whole)
    model = METHOD_CONFIGS[method]
    lists = {key: value for key, value in with_grids(entry, model).items() if isinstance(value, list)}
    lists = {key: value for key, value in lists.items() if not _takes_lists(model, key)}
    defaults = {key: field.default for key, field in model.model_fields.items()}
    varied = tuple(_varied(f"{method}.{key}", key, values, defaults.get(key)) for key, values in lists.items())
    made = {at: _validated(model, {**entry, **values}) for at, values in _combinations(varied)}
    return Alternative(method, method, varied, made, whole)


def read_alternatives(entries: Sequence[Mapping[str, Any]], *, whole: bool = False) -> tuple[Alternative, ...]:
    """The entries of a choice.

    Raises:
        ValueError: See `read_alternative`; a method stands twice, there is nothing to choose, or too much.
    """
    found = tuple(read_alternative(entry, whole=whole) for entry in entries)
    names = [alternative.name for alternative in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} appears more than once; list the values of its settings in one entry")
    total = sum(len(alternative.configs) for alternative in found)
    if total == 1:
        instead = f"directions: [{names[0]}]" if whole else f"method: {names[0]}"
        raise ValueError(f"there is nothing to choose; use {instead}, or list another method or more values")
    if total > MOST:
        raise ValueError(
            f"methods and values make {total} combinations, and each one's deltas are made and kept in files before "
            f"the search; expected at most {MOST}. List fewer values"
        )
    return found


def _choice_of_wholes(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    read_alternatives(entries, whole=True)
    return spelled_out(entries)


def choice_of_parts(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """``methods`` of a search file, looked at, with lists in the place of ``searched``.

    Raises:
        ValueError: See `read_alternatives`.
    """
    read_alternatives(entries)
    return spelled_out(entries)


Entries = list[Annotated[dict[str, Any], BeforeValidator(named)]]


class OneOfConfig(Strict):
    """One whole method of several, which the driver chooses; what is chosen has the coefficients of one direction."""

    name: Literal["one-of"] = "one-of"
    methods: Annotated[Entries, AfterValidator(_choice_of_wholes)] = Field(
        description="what is chosen among, each a name or a mapping; of a setting that has a list (`density: [0.1, "
        "0.2]`) or the word `searched` the driver also chooses the value",
    )


def custom_grids(data: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """A search file's content with lists in the place of ``searched`` in the settings of users' methods.

    Only files of which a setting is searched are run.

    Args:
        data: As the file has it; parts that are malformed are passed over.
        root: Folder that the files of methods are relative to.

    Raises:
        ConfigError: A file is missing or cannot be run, or its class does not say how the setting is searched.
    """

    def one(entry: object) -> object:
        settings = entry.get("settings") if isinstance(entry, Mapping) and entry.get("name") == "custom" else None
        if not isinstance(settings, Mapping) or SEARCHED not in [s for s in settings.values() if isinstance(s, str)]:
            return entry
        assert isinstance(entry, Mapping)
        known = declared(str(entry.get("path")), root)
        try:
            found = {
                key: stated_grid(f"{entry['path']}: {key}", known, key) if value == SEARCHED else value
                for key, value in settings.items()
            }
        except ValueError as problem:
            raise ConfigError(f"{problem}.") from None
        return {**entry, "settings": found}

    def listed(entries: object) -> object:
        return [one(entry) for entry in entries] if isinstance(entries, list) else entries

    changed = dict(data)
    if "methods" in changed:
        changed["methods"] = listed(changed["methods"])
    if isinstance(changed.get("directions"), list):
        changed["directions"] = [
            {**entry, "methods": listed(entry.get("methods"))}
            if isinstance(entry, Mapping) and entry.get("name") == CHOICE
            else entry
            for entry in changed["directions"]
        ]
    return changed


def one_of(data: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The first choice among whole methods in a search given as plain data, malformed parts passed over."""
    directions = data.get("directions")
    entries = directions if isinstance(directions, list) else []
    return next((entry for entry in entries if isinstance(entry, Mapping) and entry.get("name") == CHOICE), None)


def alternative_problems(data: Mapping[str, Any]) -> list[str]:
    """What of a search does not go with a choice among methods, drivers apart.

    Args:
        data: A search as plain data; parts that are malformed are passed over.
    """
    problems = []
    directions = data.get("directions", ["experts"])
    directions = directions if isinstance(directions, list) else []
    choices = [entry for entry in directions if isinstance(entry, Mapping) and entry.get("name") == CHOICE]
    if len(choices) > 1:
        problems.append(f"directions has {len(choices)} of {CHOICE}; expected one. List all methods in it.")
    if choices and data.get("methods"):
        problems.append(
            f"methods chooses among parts of methods, and {CHOICE} among whole ones; a search makes one choice. Take "
            "one of them out."
        )
    for twice in set(_names(choices[0].get("methods"))) & set(_names(directions)) if choices else ():
        problems.append(f"{twice} stands among the directions, and in {CHOICE} too. Take it out of one of them.")
    if not data.get("methods"):
        return problems
    method = data.get("method")
    name = method.get("name") if isinstance(method, Mapping) else method
    if name not in (None, "task_arithmetic"):
        problems.append(f"method is {name}, and methods lists what is chosen among; put it there, or take one out.")
    if directions and "experts" not in directions:
        problems.append("methods says what 'experts' among the directions stands for, and directions has no 'experts'.")
    return problems


def _names(entries: object) -> list[str]:
    """The names of methods in a list of names and mappings."""
    listed: Iterable[object] = entries if isinstance(entries, list) else ()
    names = [entry.get("name") if isinstance(entry, Mapping) else entry for entry in listed]
    return [str(name) for name in names if name not in (None, "custom", "experts")]


def _custom_alternative(entry: Mapping[str, Any], *, whole: bool) -> Alternative:
    """A user's method, whose searched settings are among its keyword arguments."""
    given = _validated(CustomMethodConfig, entry)  # lists and all, which are looked at below
    assert isinstance(given, CustomMethodConfig)
    settings = given.settings
    lists = {key: values for key, values in settings.items() if isinstance(values, list)}
    varied = tuple(_varied(f"custom.settings.{key}", key, values, None) for key, values in lists.items())
    made = {
        at: _validated(CustomMethodConfig, {**entry, "settings": {**settings, **values}})
        for at, values in _combinations(varied)
    }
    return Alternative("custom", title(given), varied, made, whole)


def _combinations(varied: Sequence[Varied]) -> Iterable[tuple[tuple[int, ...], dict[str, Any]]]:
    for positions in itertools.product(*(range(len(setting.values)) for setting in varied)):
        yield positions, {v.key: v.values[position] for v, position in zip(varied, positions, strict=True)}


def _validated(model: type[MethodSettings], settings: Mapping[str, Any]) -> MethodConfig:
    try:
        return model.model_validate(settings)  # type: ignore[return-value]
    except ValidationError as problem:
        first = problem.errors()[0]
        name = model.method_name()
        raise ValueError(f"{'.'.join([name, *map(str, first['loc'])])}: {first['msg']}") from None


def _takes_lists(model: type[MethodSettings], key: str) -> bool:
    """Whether a setting is a list itself, so that a list is one value of it."""
    field = model.model_fields.get(key)
    return field is not None and "list[" in str(field.annotation)


def _varied(where: str, key: str, values: list[Any], default: object) -> Varied:
    if len(values) < 2:
        raise ValueError(f"{where} is a list of {len(values)}; give one value as it is, or list two or more")
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    ordered = len(numbers) == len(values)
    if ordered and sorted(set(numbers)) != numbers:
        raise ValueError(f"{where} is {values}; expected different numbers in rising order")
    if not ordered and len({json.dumps(value) for value in values}) != len(values):
        raise ValueError(f"{where} is {values}; expected different values")
    usual = values.index(default) if default in values else 0
    if ordered and isinstance(default, int | float) and not isinstance(default, bool):
        usual = min(range(len(values)), key=lambda at: abs(values[at] - default))
    return Varied(key, tuple(values), ordered, usual)
