"""The schema for editors takes what `load_config` takes, and refuses what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from optmerge.cli.init import render
from optmerge.config.json_schema import search_schema
from optmerge.config.methods import METHOD_CONFIGS
from optmerge.presets import preset_names


@pytest.fixture(scope="module")
def validator() -> jsonschema.Validator:
    schema = search_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def search(**changes: Any) -> dict[str, Any]:
    return {
        "base": "base",
        "experts": {"law": "law"},
        "tasks": {"law": {"expert": "law", "data": "law.jsonl"}},
        "objective": "expert-kl",
    } | changes


def problems(validator: jsonschema.Validator, content: object) -> list[str]:
    return [error.message for error in validator.iter_errors(content)]


GOOD: list[dict[str, Any]] = [
    {},
    *({"space": name} for name in preset_names("space")),
    *({"objective": name} for name in preset_names("objective")),
    *({"schedule": name} for name in preset_names("schedule")),
    *({"methods": name} for name in preset_names("methods")),
    {"method": {"name": "custom", "path": "mine.py:Mine", "settings": {"share": 0.5}}},
    {"directions": ["experts", {"name": "one-of", "methods": ["iso-c", {"name": "ties", "density": "searched"}]}]},
    *({"directions": ["experts", name]} for name in METHOD_CONFIGS),
    {"space": {"preset": "layer-wise", "bounds": [0, 1]}},
    {"objective": {"terms": ["expert-kl", {"name": "entropy", "weight": 0.5}], "select": ["expert-kl"]}},
    {"driver": "cma"},
    {"driver": {"name": "adam", "lr": 0.02}},
    {"schedule": [{"driver": "adam", "evaluations": 4, "objective": "expert-kl"}, {"driver": {"name": "cma"}}]},
    {"methods": ["task_arithmetic", {"name": "ties-split", "density": [0.1, 0.2]}]},
    {"baselines": {"methods": ["iso-c", {"name": "ties", "density": 0.3}]}},
]


@pytest.mark.parametrize("changes", GOOD, ids=str)
def test_what_a_file_may_say(validator: jsonschema.Validator, changes: dict[str, Any]) -> None:
    assert problems(validator, search(**changes)) == []


def test_the_file_that_init_writes(validator: jsonschema.Validator) -> None:
    text = render("search.yaml", "base", {"law": "law"}, {"law": "law.jsonl"})
    assert problems(validator, yaml.safe_load(text)) == []


def test_the_readme_s_file(validator: jsonschema.Validator) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    files = [yaml.safe_load(part.partition("```")[0]) for part in readme.split("```yaml\n")[1:]]
    whole = [file for file in files if isinstance(file, dict) and "experts" in file]
    assert whole
    for file in whole:
        assert problems(validator, file) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"drivr": "adam"},
        {"driver": {"name": "adam", "lrr": 1}},
        {"driver": {"name": "nobody"}},
        {"seed": "first"},
        {"budget": "long"},
        {"space": 3},
        {"directions": [{"name": "ties", "density": 2}]},
        {"experts": ["law"]},
    ],
    ids=str,
)
def test_what_it_may_not(validator: jsonschema.Validator, changes: dict[str, Any]) -> None:
    assert problems(validator, search(**changes))
