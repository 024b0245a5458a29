"""The JSON schema of search files as people write them, for editors.

    schema = search_schema()

The settings' own schema knows search files after their short forms are resolved. A file may also name what has a name
(``driver: adam``, ``directions: [iso-c]``), and presets, by themselves or with changes: those are let through here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optmerge.config.schema import SearchConfig

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_PRESET: Schema = {"type": "object", "properties": {"preset": _TEXT}, "required": ["preset"]}
_PRESETS: Mapping[str, list[Schema]] = {
    "space": [_TEXT, _PRESET],
    "objective": [_TEXT, _PRESET],
    "schedule": [_TEXT],
    "methods": [_TEXT],
}
"""Keys of a search file, or of a stage, that presets can fill."""


def search_schema() -> Schema:
    """The schema of search files (JSON Schema 2020-12)."""
    schema = SearchConfig.model_json_schema()
    definitions = schema.get("$defs", {})
    for described in (schema, *definitions.values()):
        properties = described.get("properties", {})
        for key, value in properties.items():
            properties[key] = _with_presets(_named(value, definitions), _PRESETS.get(key, []))
    top = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "optmerge search file"}
    return {**schema, **top}


def _named(schema: Schema, definitions: Mapping[str, Schema]) -> Schema:
    """The schema, where a name alone will do for each thing that has one."""
    if _has_name(schema, definitions):
        kept: Schema = {key: schema[key] for key in ("default", "description", "title") if key in schema}
        bare = {key: value for key, value in schema.items() if key not in kept}
        return {"anyOf": [_TEXT, bare], **kept}
    changed = dict(schema)
    if isinstance(items := schema.get("items"), dict):
        changed["items"] = {"anyOf": [_TEXT, items]} if _free(items) else _named(items, definitions)
    if "anyOf" in schema:
        changed["anyOf"] = [_named(each, definitions) for each in schema["anyOf"]]
    return changed


def _has_name(schema: Schema, definitions: Mapping[str, Schema]) -> bool:
    if schema.get("discriminator", {}).get("propertyName") == "name":
        return True
    described = definitions.get(str(schema.get("$ref", "")).rpartition("/")[2], {})
    return "const" in described.get("properties", {}).get("name", {})


def _free(schema: Schema) -> bool:
    """Whether it is a mapping of anything, as the entries of ``methods`` are."""
    return schema.get("type") == "object" and schema.get("additionalProperties") is True


def _with_presets(schema: Schema, presets: list[Schema]) -> Schema:
    if not presets:
        return schema
    kept: Schema = {key: schema[key] for key in ("default", "description", "title") if key in schema}
    bare = {key: value for key, value in schema.items() if key not in kept}
    return {"anyOf": [*presets, *(bare["anyOf"] if set(bare) == {"anyOf"} else [bare])], **kept}
