"""The reference page of the search file, made from the schema.

    python -m optmerge.config.reference > docs/search-file.md

A test holds the page and the schema equal.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from optmerge.config.alarms import AlarmsConfig
from optmerge.config.alternatives import OneOfConfig
from optmerge.config.drivers import DRIVER_CONFIGS
from optmerge.config.executor import ExecutorConfig
from optmerge.config.methods import METHOD_CONFIGS
from optmerge.config.methods.own import CustomMethodConfig
from optmerge.config.objectives import AGGREGATE_CONFIGS, TERM_CONFIGS, CustomConfig, ObjectiveConfig
from optmerge.config.sampling import SAMPLING_CONFIGS
from optmerge.config.schema import BaselinesConfig, BudgetConfig, SearchConfig, TrackingConfig
from optmerge.config.spaces import ChunksConfig, RuleConfig, SpaceConfig
from optmerge.config.spectral import DIRECTION_CONFIGS
from optmerge.config.stages import StageConfig
from optmerge.config.tasks import SplitsConfig, TaskConfig, TemplateConfig

OPENING = """\
# The search file

One YAML file describes a search. `optmerge init` writes a commented one; `optmerge validate FILE` checks it and lists
everything that is wrong with it, each with its dotted key, what was expected, and near matches.

- Paths are relative to the file.
- Unknown keys, and keys that stand twice, are refused.
- Any key can be changed on the command line: `--set driver.lr=0.05`, `--set budget.minutes=null`,
  `--set objective.terms.0.temperature=2`. Values are YAML. The order of precedence is default, preset, file, `--set`.
- `space` and `objective` are a preset's name (`optmerge ls`), a path to a YAML file, a mapping, or a
  mapping with `preset: NAME` whose other keys replace those of the preset.
- `schedule` is a preset's name, a path to a YAML file, or the list itself, and takes the place of `driver`.
- `driver`, `method`, `objective.aggregate`, `tasks.*.sampling` and the entries of `directions` are a name, or a mapping
  with `name` and its settings.
- The run's folder keeps the resolved file, with every default written out, as `search.yaml`.

`1e-3` is a number, and only `true` and `false` are booleans: a label may be called `no`.
"""

SECTIONS: tuple[tuple[str, str, type[BaseModel]], ...] = (
    ("Top level", "", SearchConfig),
    ("tasks", "`tasks` maps each task's name to:", TaskConfig),
    ("tasks.*.template", "For language models; `{column}` is replaced by the row's value.", TemplateConfig),
    ("splits", "Examples are assigned to splits by the hash of their content, never by their order.", SplitsConfig),
    ("space", "", SpaceConfig),
    ("space.chunks", "", ChunksConfig),
    ("space.rules", "A list; the last rule that matches wins.", RuleConfig),
    ("objective", "", ObjectiveConfig),
    (
        "schedule",
        "A list of stages, or the name of one that comes with optmerge; see [schedules.md](schedules.md).",
        StageConfig,
    ),
    ("budget", "The search stops at the first limit that it reaches; null means no such limit.", BudgetConfig),
    ("alarms", "Their meaning is in [trust.md](trust.md).", AlarmsConfig),
    ("baselines", "Scored before the search, and not counted by the budget.", BaselinesConfig),
    ("executor", "", ExecutorConfig),
    ("tracking", "", TrackingConfig),
)

REGISTRIES: tuple[tuple[str, Mapping[str, type[BaseModel]]], ...] = (
    ("tasks.*.sampling", SAMPLING_CONFIGS),
    ("objective.terms", {**TERM_CONFIGS, "custom": CustomConfig}),
    ("objective.aggregate", AGGREGATE_CONFIGS),
    ("driver", DRIVER_CONFIGS),
    ("method, directions", {**METHOD_CONFIGS, "custom": CustomMethodConfig}),
    ("directions", {**DIRECTION_CONFIGS, "one-of": OneOfConfig}),
)


def page() -> str:
    """The Markdown of ``docs/search-file.md``."""
    parts = [OPENING]
    for title, text, model in SECTIONS:
        parts.append(_section(f"## {title}", text, model))
    for title, registry in REGISTRIES:
        parts.append(f"## {title}, by name\n")
        parts += [_section(f"### {name}", _paragraph(model), model, without="name") for name, model in registry.items()]
    return "\n".join(parts)


def _section(head: str, text: str, model: type[BaseModel], *, without: str = "") -> str:
    rows = [_row(name, field) for name, field in model.model_fields.items() if name != without]
    table = ["| key | value | default | meaning |", "| :-- | :-- | :-- | :-- |", *rows] if rows else ["No settings."]
    return "\n".join([head, "", *([text, ""] if text else []), *table, ""])


def _row(name: str, field: FieldInfo) -> str:
    cells = [f"`{name}`", _kind(field.annotation), _default(field), field.description or ""]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _paragraph(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split())


def _kind(annotation: Any) -> str:
    """What may stand there, in words."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inside[0])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_kind(part) for part in inside))
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inside)
    if origin is list:
        return f"list of {_kind(inside[0])}"
    if origin is tuple:
        return f"[{', '.join(_kind(part) for part in inside)}]"
    if origin is dict:
        return f"mapping of names to {_kind(inside[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        named = annotation.model_fields.get("name")
        return f"`{named.default}`" if named is not None else "mapping"
    if annotation is Any:
        return "anything"
    words = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null"}
    return words[annotation]


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        name = getattr(value, "name", None)
        return f"`{name}`" if name else "see below"
    return f"`{json.dumps(value)}`" if not isinstance(value, str) else f"`{value}`" if value else '`""`'


if __name__ == "__main__":
    sys.stdout.write(page())
