"""Searches in spaces whose coefficients belong to slices of tensors: records, resume, recipes, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optmerge.config.load import build_config
from optmerge.errors import ConfigError, RunInterrupted
from optmerge.export.checkpoint import merged_tensors
from optmerge.merging.deltas import Deltas
from optmerge.merging.engine import Engine
from optmerge.merging.merge import rows_of_parameters
from optmerge.merging.recipe import Recipe, open_recipe
from optmerge.models.resident import ResidentModel
from optmerge.records import Trajectory
from optmerge.runner.plan import make_plan
from optmerge.runner.search import Run, resume, search
from optmerge.space.names import VariableNames
from optmerge.tracking.view import RunView
from tests.zoo import facts

Settings = Callable[..., dict[str, Any]]


def run(settings: dict[str, Any], root: Path, **options: Any) -> Run:
    return search(build_config(settings, root=root), root=root, **options)


def test_a_column_wise_search_ends_with_a_recipe_that_merges_to_its_winner(settings: Settings, tmp_path: Path) -> None:
    made = run(settings(space={"granularity": "column-wise", "start": 0.3}), tmp_path)
    records = Trajectory.read(made.folder).records
    start = next(record for record in records if record.name == "uniform:0.3" and record.split == "select")
    assert start.value is not None
    assert made.result["best"]["select"] < start.value
    manifest = json.loads((made.folder / "manifest.json").read_text())
    vector = records[made.result["best"]["record"]].vector
    names = VariableNames(manifest["variables"])
    assert vector is not None
    assert len(names) == len(vector) == manifest["dimension"]
    assert len(manifest["variables"]) < len(vector) / 4
    recipe = Recipe.load(made.folder / "recipe.yaml")
    family = open_recipe(recipe, relative_to=made.folder)
    resident = ResidentModel(family, device=torch.device("cpu"), dtype=torch.float32)
    rows = rows_of_parameters(recipe, family)
    deltas = Deltas(family, recipe.directions, cache=None)
    Engine(resident.parameters, deltas.segments, rows.first, cuts=rows.cuts).apply(recipe.coefficients)
    streamed = merged_tensors(recipe, family)
    for name, parameter in resident.parameters.items():
        (disk,) = family.disk_names(name)
        assert torch.equal(streamed[disk], parameter.detach())
    shown = RunView.open(made.folder).coefficients
    assert shown is not None
    assert shown.spread is not None
    assert len(shown.rows) == len(recipe.groups)
    assert shown.spread.max() > 0.01


@pytest.mark.parametrize("granularity", ["column-wise", "chunk-wise"])
def test_a_resumed_search_is_that_of_an_uninterrupted_run(settings: Settings, tmp_path: Path, granularity: str) -> None:
    configured = settings(space={"granularity": granularity})
    whole = run(configured, tmp_path / "whole")
    asked = iter(range(100))
    with pytest.raises(RunInterrupted):
        run(configured, tmp_path / "cut", stop=lambda: "asked to" if next(asked) >= 10 else None)
    (folder,) = (path.parent for path in (tmp_path / "cut").rglob("trajectory.jsonl"))
    again = resume(folder)
    assert facts(again.folder) == facts(whole.folder)
    assert (again.folder / "recipe.yaml").read_text().partition("groups:")[2] == (
        (whole.folder / "recipe.yaml").read_text().partition("groups:")[2]
    )
    np.testing.assert_array_equal(
        Recipe.load(again.folder / "recipe.yaml").coefficients, Recipe.load(whole.folder / "recipe.yaml").coefficients
    )


def test_a_tensor_without_a_chunk_keeps_the_best_baselines_coefficients(settings: Settings, tmp_path: Path) -> None:
    made = run(settings(space={"granularity": "chunk-wise"}), tmp_path)
    records = Trajectory.read(made.folder).records
    start = next(r for r in records if r.phase == "search").vector
    assert start is not None
    spans = list(VariableNames(json.loads((made.folder / "manifest.json").read_text())["variables"]).spans())
    baseline = [set(start[at].tolist()) for name, at in spans if name.endswith(("/a", "/b"))][:2]
    assert [len(values) for values in baseline] == [1, 1]  # one coefficient per direction, whatever the tensor
    recipe = Recipe.load(made.folder / "recipe.yaml")
    searched = {name.rpartition("/")[0] for name, _ in spans}
    held = [at for group, at in zip(recipe.groups, recipe.rows, strict=True) if group.name not in searched]
    assert held
    expected = [values.pop() for values in baseline]
    assert all(recipe.coefficients[at].tolist() == [expected] for at in held)
    assert any(group.count > 1 for group in recipe.groups)


def test_the_plan_counts_slices(settings: Settings, tmp_path: Path) -> None:
    config = build_config(settings(space={"granularity": "column-wise"}), root=tmp_path)
    plan = make_plan(config, root=tmp_path)
    assert plan.dimension == 2 * sum(group.slices for group in plan.groups)
    assert plan.disk == 8 * plan.dimension * 16
    assert plan.memory["coefficients"] > plan.disk
    assert any(group.slices == 24 for group in plan.groups)
    config = build_config(settings(space={"granularity": "chunk-wise"}), root=tmp_path)
    assert any(
        "as if all task vectors were of one size" in warning for warning in make_plan(config, root=tmp_path).warnings
    )


@pytest.mark.parametrize("driver", ["cma", "optuna"])
def test_drivers_that_see_no_gradient_refuse_thousands_of_variables(
    settings: Settings, tmp_path: Path, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optmerge.drivers.MOST_VARIABLES", {driver: 500})
    configured = settings(space={"granularity": "column-wise"}, driver={"name": driver})
    for call in (
        lambda: run(configured, tmp_path),
        lambda: make_plan(build_config(configured, root=tmp_path), root=tmp_path),
    ):
        with pytest.raises(ConfigError, match=rf"variables, and the driver {driver} takes at most 500.*Use adam"):
            call()
