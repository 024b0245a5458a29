"""``optmerge front`` and ``optmerge export --weights`` on a small search."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from optmerge.config.load import build_config
from optmerge.export.coefficients import read_coefficients
from optmerge.merging.recipe import Recipe
from optmerge.runner.search import search
from tests.cli.conftest import Run
from tests.zoo import make_zoo, zoo_settings


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search of several objectives."""
    root = tmp_path_factory.mktemp("front")
    driver = {"name": "optuna", "sampler": "nsga2", "population": 4}
    settings = zoo_settings(make_zoo(root, "bert"), driver=driver, budget={"evaluations": 12, "front": 6})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTMERGE_CACHE", str(root / "cache"))
        return search(build_config(settings, root=root), root=root).folder


def test_front_prints_tables_and_draws(run: Run, folder: Path, made: Path) -> None:
    shown = run("front", made)
    assert shown.code == 0, shown.err
    assert "objective, select" in shown.out
    assert "accuracy, report" in shown.out
    assert "expert:a" in shown.out
    assert (made / "front.png").read_bytes().startswith(b"\x89PNG")
    facts = json.loads(run("front", made, "--json").out)
    assert facts["tasks"] == ["a", "b"]
    assert {member["record"] for member in facts["members"]} >= {
        entry["record"] for entry in json.loads((made / "front.json").read_text())["members"]
    }


@pytest.mark.parametrize(("weights", "task"), [("a=99,b=0", "a"), ("a=0", "b")])
def test_export_takes_another_merge_of_the_front(run: Run, folder: Path, made: Path, weights: str, task: str) -> None:
    front = json.loads((made / "front.json").read_text())
    best = min((m for m in front["members"] if m["on_front"]), key=lambda m: m["select"][task])
    said = run("export", made, "--format", "coefficients", "--to", "c.csv", "--weights", weights)
    assert said.code == 0, said.err
    assert f"Picked record {best['record']} from the front" in said.out
    recipe = Recipe.load(made / "front" / f"{best['record']}.yaml")
    table = read_coefficients(folder / "c.csv")
    group, row = recipe.groups[0], recipe.coefficients[recipe.rows[0]][0]
    written = [table[group.tensors[0]][direction.name] for direction in recipe.directions]
    assert np.array_equal(written, row)
    facts = run("export", made, "--format", "checkpoint", "--to", "m", "--weights", weights, "--json")
    assert json.loads(facts.out)["record"] == best["record"]
    assert f"front, record {best['record']}" in (folder / "m" / "README.md").read_text()


@pytest.mark.parametrize(
    ("weights", "message"),
    [("c=1", "expected tasks of the run (a, b)"), ("a", "expected task=weight"), ("a=-1", "a=-1")],
)
def test_wrong_weights_write_nothing(run: Run, folder: Path, made: Path, weights: str, message: str) -> None:
    said = run("export", made, "--format", "coefficients", "--to", "c.csv", "--weights", weights)
    assert (said.code, said.out) == (2, "")
    assert message in said.err
    assert "Traceback" not in said.err
    assert list(folder.iterdir()) == []


def test_a_folder_that_is_no_run_has_no_front(run: Run, folder: Path) -> None:
    said = run("front", ".")
    assert said.code == 2
    assert "search.yaml" in said.err
