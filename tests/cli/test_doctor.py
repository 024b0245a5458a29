"""What a machine has, and the schema for editors."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

from optmerge.runner import doctor
from tests.cli.conftest import Run


def test_it_tells_versions_devices_memory_and_caches(run: Run) -> None:
    said = run("doctor").out
    assert f"torch {torch.__version__}" in said
    for part in ("device: auto", "memory", "caches", "Weights & Biases", "peft"):
        assert part in said
    found = json.loads(run("doctor", "--json").out)
    assert found["versions"]["numpy"] == version("numpy")
    assert 0 < found["memory"][1] <= found["memory"][0]
    assert all(free > 0 for free in found["disk"].values())


def test_a_feature_is_ready_or_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    def absent(name: str) -> str:
        if name == "peft":
            raise PackageNotFoundError(name)
        return "0.0.1" if name == "ray" else version(name)

    monkeypatch.setattr(doctor, "version", absent)
    features = json.loads(run("doctor", "--json").out)["features"]
    assert [name.partition(">")[0] for name in features["peft"]["missing"]] == ["peft"]
    assert features["ray"]["missing"], "an old version is not enough"
    assert "pip install 'optmerge[peft]'" in run("doctor").out
    assert "dev" not in features


def test_every_extra_is_looked_at() -> None:
    needed, extras = doctor.requirements()
    assert {"torch", "cma", "optuna"} <= {each.name for each in needed}
    assert [each.name for each in extras["peft"]] == ["peft"]


def test_signed_in_by_the_file_that_wandb_leaves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Run) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not json.loads(run("doctor", "--json").out)["accounts"]["Weights & Biases"]
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password x\n")
    assert json.loads(run("doctor", "--json").out)["accounts"]["Weights & Biases"]


def test_the_schema_is_written_once(run: Run, folder: Path) -> None:
    assert json.loads(run("schema").out)["title"] == "optmerge search file"
    run("schema", "--to", "search.schema.json")
    assert json.loads((folder / "search.schema.json").read_text())["properties"]["driver"]
    refused = run("schema", "--to", "search.schema.json")
    assert refused.code == 2
    assert "is not overwritten" in refused.err
