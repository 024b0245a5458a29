"""What the verbs that read no weights know of methods and directions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from optmerge.config.methods import METHOD_CONFIGS
from tests.cli.conftest import Run


def write(folder: Path, **changes: Any) -> Path:
    names = changes.pop("experts", ["law", "code"])
    (folder / "texts.jsonl").touch()
    content = {
        "base": "base",
        "experts": {name: name for name in names},
        "tasks": {name: {"expert": name, "data": "texts.jsonl"} for name in names},
        "objective": "expert-kl",
        **changes,
    }
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_ls_shows_every_method_with_its_settings(run: Run) -> None:
    listed = json.loads(run("ls", "methods", "--json").out)["methods"]
    assert [entry["name"] for entry in listed] == list(METHOD_CONFIGS)
    for entry in listed:
        fields = [name for name in METHOD_CONFIGS[entry["name"]].model_fields if name != "name"]
        assert all(f"{field}=" in entry["settings"] for field in fields)


def test_validate_names_the_directions(run: Run, folder: Path) -> None:
    path = write(folder, method="dare", directions=["experts", "ties", {"name": "ties", "density": 0.5}])
    assert "space over dare:law, dare:code, ties, ties[density=0.5]," in run("validate", path).out


def test_validate_refuses_names_that_clash(run: Run, folder: Path) -> None:
    result = run("validate", write(folder, experts=["law", "ties"], baselines={"methods": ["ties"]}))
    assert result.code == 2
    assert "an expert is called like the method ties" in result.err


def test_validate_refuses_a_method_without_parts(run: Run, folder: Path) -> None:
    result = run("validate", write(folder, method="slerp"))
    assert result.code == 2
    assert "method: slerp is not a sum of one part per expert" in result.err
