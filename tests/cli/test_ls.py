"""``optmerge ls spaces`` on models that no search file names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from optmerge.presets import preset_names
from tests.cli.conftest import Run
from tests.tiny import save_family


def test_dimensions_on_models(run: Run, tmp_path: Path) -> None:
    models = save_family("llama", tmp_path)
    experts = [argument for path in models.experts.values() for argument in ("--expert", str(path))]
    listing = json.loads(run("ls", "spaces", "--base", models.base, *experts, "--json").out)["spaces"]
    dimensions = {entry["name"]: entry["dimension"] for entry in listing}
    assert set(dimensions) == set(preset_names("space"))
    assert list(dimensions.values()) == sorted(dimensions.values())
    wanted = {"task-wise": 2, "shared-layer-wise": 5, "layer-wise": 10, "kind-wise": 12, "polynomial": 18}
    assert wanted.items() <= dimensions.items()


@pytest.mark.parametrize("arguments", [["--base", "base"], ["--expert", "one"], ["--base", "b", "x.yaml"]])
def test_models_are_named_whole_or_not_at_all(run: Run, arguments: list[str]) -> None:
    result = run("ls", "spaces", *arguments)
    assert result.code == 2
    assert "--base MODEL with one --expert MODEL or more" in " ".join(result.err.split())
