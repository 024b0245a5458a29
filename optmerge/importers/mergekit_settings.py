"""How mergekit 0.1.5 reads one parameter: scalars, gradients over layers, filters by name, and who overrides whom.

A setting is a scalar, a list (a gradient: its values at equal distances between the first layer of a slice and its
last, linear in between), or one or more ``{filter: text, value: scalar or list}``, of which the first counts whose
filter is a substring of the tensor's name. A setting that matches nothing leaves the word to the next level.

    lookup(Parameter("t", float), [None, {"t": [0.0, 1.0]}], "model.layers.3.mlp.up_proj.weight", at=0.5)     # 0.5
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from optmerge.errors import ConfigError

Scope = Literal["shared", "input", "non-base"]
Value = float | bool | None
_ANY = (None, "*")


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of one of mergekit's methods.

    Attributes:
        name: In the configuration.
        kind: ``float`` or ``bool``.
        scope: ``shared``: one for the tensor; ``input``: one per model; ``non-base``: one per model but the base.
        default: Where nothing says it.
        required: There is no default.
    """

    name: str
    kind: type[float] | type[bool]
    scope: Scope = "shared"
    default: Value = None
    required: bool = False


def lookup(parameter: Parameter, levels: Iterable[Mapping[str, Any] | None], tensor: str, *, at: float) -> Value:
    """The value of a parameter for one tensor.

    Args:
        parameter: Which one.
        levels: Settings by name, those that override first.
        tensor: The tensor's name.
        at: Where in its slice the tensor is, 0-1.

    Raises:
        ConfigError: A value is no number (or no truth value), or the parameter is required and not there.
    """
    for level in levels:
        if level is not None and parameter.name in level:
            found = evaluate(level[parameter.name], tensor, at, parameter)
            if found is not None:
                return found
    if parameter.required:
        raise ConfigError(
            f"The parameter {parameter.name!r} is missing for the tensor {tensor}, and mergekit's method needs it. Add "
            f"`parameters: {{{parameter.name}: ...}}` at the model, or at the top for all models."
        )
    return parameter.default


def evaluate(setting: Any, tensor: str, at: float, parameter: Parameter) -> Value:
    """A setting's value for one tensor; None where no filter matches.

    Raises:
        ConfigError: See `lookup`.
    """
    if isinstance(setting, Mapping):
        setting = [setting]
    if not isinstance(setting, list):
        return _scalar(setting, parameter)
    if any(isinstance(entry, Mapping) for entry in setting):
        for entry in setting:
            if not isinstance(entry, Mapping) or "value" not in entry:
                raise ConfigError(
                    f"The parameter {parameter.name!r} has {entry!r} among its filters; expected "
                    "{filter: part of a name, value: ...}, or {value: ...} for the rest."
                )
            wanted = entry.get("filter")
            if wanted in _ANY or str(wanted) in tensor:
                return evaluate(entry["value"], tensor, at, parameter)
        return None
    return _interpolated([_scalar(entry, parameter) for entry in setting], at)


def has_gradient(setting: Any) -> bool:
    """Whether a setting's values depend on the layer."""
    if isinstance(setting, Mapping):
        return has_gradient(setting.get("value"))
    if isinstance(setting, list):
        if any(isinstance(entry, Mapping) for entry in setting):
            return any(has_gradient(entry) for entry in setting)
        return len(setting) > 1
    return False


def _interpolated(values: list[Value], at: float) -> Value:
    if not values:
        return None
    place = at * (len(values) - 1)
    first = int(place)
    left, right = values[first], values[min(len(values) - 1, first + 1)]
    if isinstance(left, bool) or isinstance(right, bool) or left is None or right is None:
        return left
    share = place - first
    return (1 - share) * left + share * right


def _scalar(value: Any, parameter: Parameter) -> Value:
    try:
        return TypeAdapter(parameter.kind).validate_python(value)
    except ValidationError:
        expected = "true or false" if parameter.kind is bool else "a number"
        raise ConfigError(
            f"The parameter {parameter.name!r} is {value!r}; expected {expected}, a list of such, or a list of "
            "{filter: part of a name, value: ...}."
        ) from None
