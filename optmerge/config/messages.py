"""pydantic's errors -> sentences for the person who wrote the search file.

    for problem in explain(error, SearchConfig, data): ...

Every problem has its dotted path, the value that stands there, what was expected, and near matches.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from optmerge.errors import did_you_mean

Path = tuple[str | int, ...]

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping",
    "model": "a mapping",
    "mapping": "a mapping",
}
_LIMITS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("of at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("of at most", "le"),
}


def explain(error: ValidationError, model: type[BaseModel], data: object) -> list[str]:
    """One sentence per place that is wrong, in the file's order.

    Args:
        error: What validating ``data`` raised.
        model: The model it was validated as.
        data: Plain data as the user wrote it, presets resolved.
    """
    grouped: dict[Path, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        grouped.setdefault(_data_path(detail, data), []).append(detail)
    problems: list[str] = []
    for path, details in grouped.items():
        inside = any(other[: len(path)] == path and len(other) > len(path) for other in grouped)
        if inside and all(detail["type"] in ("literal_error", "union_tag_not_found") for detail in details):
            continue  # the value is another form than this one, and that form's problems are told
        problems.extend(_sentences(path, details, model, data))
    return problems


def dotted(path: Iterable[str | int]) -> str:
    """``("objective", "terms", 0)`` -> ``objective.terms.0``."""
    return ".".join(str(part) for part in path)


def shown(value: object) -> str:
    """A value as the file would have it, cut to a readable length."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _sentences(path: Path, details: Sequence[ErrorDetails], model: type[BaseModel], data: object) -> list[str]:
    kinds = {detail["type"] for detail in details}
    name = dotted(path)
    if "value_error" in kinds:
        reasons = [str(d["ctx"]["error"]) for d in details if d["type"] == "value_error"]
        lines = [line for reason in reasons for line in reason.splitlines()]
        return [f"{name}: {line}" if name else line for line in lines]
    if kinds == {"missing"}:
        wanted = _described(path, model, data, _kind_at(path, model, data))
        return [f"{name}: missing; expected {wanted}."]
    if "extra_forbidden" in kinds:
        return [_unknown_key(path, model, data)]
    if path and "[key]" in path:
        return [f"{dotted(path[:-1])}: a name must be text; put it in quotes."]
    value = _value_at(path, data)
    choices: list[str] = []
    expected: list[str] = []
    for detail in details:
        options, phrase = _expectation(detail)
        choices += [option for option in options if option not in choices]
        if phrase and phrase not in expected:
            expected.append(phrase)
    if {"a number", "a whole number"} <= set(expected):
        expected.remove("a whole number")
    expected = [_with_keys(path, model, data) if phrase == "a mapping" else phrase for phrase in expected]
    wanted = " or ".join([*([_one_of(choices)] if choices else []), *expected])
    word = value.get("name") if isinstance(value, Mapping) and "union_tag_invalid" in kinds else value
    near = did_you_mean(word, choices) if isinstance(word, str) else ""
    return [f"{name or 'the file'} is {shown(word)}; expected {_described(path, model, data, wanted)}.{near}"]


def _expectation(detail: ErrorDetails) -> tuple[list[str], str]:
    """The allowed names, and a phrase, of one pydantic error."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "literal_error":
        return [option.strip("'") for option in context["expected"].replace(" or ", ", ").split(", ")], ""
    if kind == "union_tag_invalid":
        return [tag.strip().strip("'") for tag in context["expected_tags"].split(",")], ""
    if kind == "union_tag_not_found":
        return [], "a name, or a mapping with a name"
    if kind in _LIMITS:
        word, key = _LIMITS[kind]
        return [], f"a number {word} {context[key]:g}"
    if kind == "too_short":
        return [], f"at least {context['min_length']} entries" if context["min_length"] > 1 else "at least one entry"
    if kind == "too_long":
        return [], f"at most {context['max_length']} entries"
    if kind == "string_pattern_mismatch":
        return [], "a file's name that ends with .yaml"
    if kind == "finite_number":
        return [], "a finite number"
    stem = kind.split("_")[0]
    if stem in _KINDS:
        return [], _KINDS[stem]
    return [], detail["msg"][:1].lower() + detail["msg"][1:]


def _unknown_key(path: Path, model: type[BaseModel], data: object) -> str:
    parent = _models_at(path[:-1], model, data)
    known = [name for each in parent for name in each.model_fields]
    owner = _value_at(path[:-1], data)
    whose = ""
    if isinstance(owner, Mapping) and isinstance(owner.get("name"), str) and len(path) > 1:
        whose = f" for {owner['name']}"
    near = did_you_mean(str(path[-1]), known)
    if not near:
        deeper = [
            f"{field}.{path[-1]}"
            for field, info in model.model_fields.items()
            for part in _flatten(info.annotation)
            if isinstance(part, type) and issubclass(part, BaseModel) and path[-1] in part.model_fields
        ]
        near = f" It belongs to {' or '.join(dict.fromkeys(deeper))}." if len(path) == 1 and deeper else ""
    listed = "" if near else f" Known here: {', '.join(known)}."
    return f"{dotted(path)}: unknown key{whose}.{near}{listed}"


def _described(path: Path, model: type[BaseModel], data: object, wanted: str) -> str:
    """``wanted``, with the field's own description behind it."""
    if not path or isinstance(path[-1], int):
        return wanted or "a value"
    for parent in _models_at(path[:-1], model, data):
        field = parent.model_fields.get(str(path[-1]))
        if field is not None and field.description:
            return f"{wanted} ({field.description})" if wanted else field.description
    return wanted or "a value"


def _with_keys(path: Path, model: type[BaseModel], data: object) -> str:
    """``a mapping``, with the keys that it may have when there is only one kind of mapping."""
    models = _models_at(path, model, data)
    return f"a mapping with {', '.join(models[0].model_fields)}" if len(models) == 1 else "a mapping"


def _kind_at(path: Path, model: type[BaseModel], data: object) -> str:
    """What kind of thing a missing field would be."""
    for parent in _models_at(path[:-1], model, data):
        field = parent.model_fields.get(str(path[-1]))
        if field is None:
            continue
        for part in _flatten(field.annotation):
            origin = get_origin(part) or part
            if isinstance(origin, type):
                return "a mapping" if issubclass(origin, BaseModel) else _KINDS.get(_STEMS.get(origin, ""), "")
    return ""


_STEMS: dict[type, str] = {str: "string", int: "int", float: "float", bool: "bool", list: "list", dict: "dict"}


def _data_path(detail: ErrorDetails, data: object) -> Path:
    """An error's location without the union tags that stand between the keys of the data."""
    path: list[str | int] = []
    node: object = data
    location = detail["loc"]
    for position, part in enumerate(location):
        last = position == len(location) - 1
        names_key = last and detail["type"] in ("missing", "extra_forbidden")
        if part == "[key]":
            path.append(part)
        elif isinstance(node, Mapping) and part in node:
            path.append(part)
            node = node[part]
        elif (isinstance(node, (list, tuple)) and isinstance(part, int) and part < len(node)) or names_key:
            path.append(part)
            node = (
                node[part] if isinstance(node, (list, tuple)) and isinstance(part, int) and part < len(node) else None
            )
    return tuple(path)


def _value_at(path: Path, data: object) -> Any:
    node: Any = data
    for part in path:
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            return None
    return node


def _models_at(path: Path, model: type[BaseModel], data: object) -> list[type[BaseModel]]:
    """The models that may describe the mapping at ``path``; the data's ``name`` chooses among a union's."""
    found: list[Any] = [model]
    node: Any = data
    for part in (*path, None):
        tag = node.get("name") if isinstance(node, Mapping) else None
        tagged = [m for m in found if _is_model(m) and _tag(m) is not None and _tag(m) == tag]
        found = tagged or found
        if part is None:
            break
        following: list[Any] = []
        for each in found:
            if _is_model(each) and part in each.model_fields:
                following += _flatten(each.model_fields[part].annotation)
            elif get_origin(each) is dict:
                following += _flatten(get_args(each)[1])
            elif get_origin(each) in (list, tuple):
                following += [inner for argument in get_args(each) for inner in _flatten(argument)]
        found = following
        node = _value_at((part,), node)
    return [each for each in found if _is_model(each)]


def _flatten(annotation: Any) -> list[Any]:
    """The members of a union, at any depth, without their ``Annotated``."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _flatten(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [part for argument in get_args(annotation) for part in _flatten(argument)]
    return [annotation]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _tag(model: type[BaseModel]) -> object:
    field = model.model_fields.get("name")
    return None if field is None else field.default


def _one_of(choices: Sequence[str]) -> str:
    return choices[0] if len(choices) == 1 else "one of " + ", ".join(choices)
