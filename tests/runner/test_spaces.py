"""Whole searches in every space, with variables that coefficients have in common, and along bands of components."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optmerge import api
from optmerge.config.load import build_config
from optmerge.errors import OptmergeError, RunInterrupted
from optmerge.merging.recipe import Recipe
from optmerge.presets import preset_names
from optmerge.records import Trajectory
from optmerge.runner.baselines import make_baselines, representable
from optmerge.runner.evaluator import Evaluator
from optmerge.runner.folder import RunFolder
from optmerge.runner.plan import make_plan
from optmerge.runner.problem import open_problem
from optmerge.runner.search import Run, resume, search
from optmerge.runner.teachers import Teachers
from tests.zoo import facts

Settings = Callable[..., dict[str, Any]]

SPECTRAL = {"name": "spectral", "bands": 3}
MASKS = {"granularity": "tensor-wise", "bounds": [0, 1], "whole": True, "start": 1}
QUICK: dict[str, Any] = {
    "budget": {"evaluations": 4},
    "limit": 8,
    "baselines": {"grid": [0.3], "method_grid": [1.0], "closed_form": False},
}
DRIVERS: list[dict[str, Any]] = [
    {"name": "adam", "lr": 0.05},
    {"name": "cma", "population": 4, "scale": "norms"},
    {"name": "optuna", "sampler": "random"},
    {"name": "natural-niches"},
]


def run(settings: dict[str, Any], root: Path, **options: Any) -> Run:
    return search(build_config(settings, root=root), root=root, **options)


def winner(made: Run) -> dict[str, torch.Tensor]:
    """The resident model at the run's best vector, by the base's names on disk."""
    problem = open_problem(RunFolder.open(made.folder).config())
    best = Trajectory.read(made.folder).records[made.result["best"]["record"]].vector
    assert best is not None
    problem.engine.apply(problem.expand(best))
    return {
        disk: problem.resident.parameters[name].data
        for name in problem.family.parameters
        for disk in problem.family.disk_names(name)
    }


def merged(where: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = api.merge(where)
    return found


def equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def checked(made: Run, evaluations: int = 4) -> None:
    """Every candidate was judged, within bounds, and the recipe is the model that was."""
    records = [record for record in Trajectory.read(made.folder).records if record.phase == "search"]
    assert len(records) == evaluations
    assert all(record.error is None for record in records)
    space = open_problem(RunFolder.open(made.folder).config()).space
    lower, upper = space.spread(space.lower), space.spread(space.upper)
    for record in records:
        assert record.vector is not None
        table = space.decode(record.vector)
        assert ((table >= lower - 1e-12) & (table <= upper + 1e-12)).all()
    if not space.held.any():  # those stay at the start, which the search has chosen
        assert equal(merged(made.folder), winner(made))


@pytest.mark.parametrize("preset", preset_names("space"))
def test_a_search_in_every_space(settings: Settings, tmp_path: Path, preset: str) -> None:
    directions = [SPECTRAL] if preset in ("spectral", "adarank") else ["experts"]
    checked(run(settings(space=preset, directions=directions, **QUICK), tmp_path))


@pytest.mark.parametrize("driver", DRIVERS[1:], ids=lambda driver: str(driver["name"]))
def test_masks_of_components(settings: Settings, tmp_path: Path, driver: dict[str, Any]) -> None:
    asked = settings(space=MASKS, directions=[SPECTRAL | {"scale": 0.3}], driver=driver, **QUICK)
    made = run(asked, tmp_path)
    checked(made)
    recipe = Recipe.load(made.folder / "recipe.yaml")
    records = [record for record in Trajectory.read(made.folder).records if record.phase == "search"]
    vectors = np.array([record.vector for record in records])
    assert set(np.unique(vectors)) == {0.0, 1.0}
    assert all(direction.config.scale == 0.3 for direction in recipe.directions if direction.config)  # type: ignore[union-attr]


def test_a_gradient_has_no_masks(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(OptmergeError, match=r"takes whole numbers only, and the driver adam moves in small steps"):
        run(settings(space=MASKS, directions=[SPECTRAL], driver=DRIVERS[0], **QUICK), tmp_path)


def test_masks_by_a_gradient_that_goes_straight_through(settings: Settings, tmp_path: Path) -> None:
    quick = QUICK | {"budget": {"evaluations": 6}}
    driver = {"name": "sgd", "lr": 0.5, "clip": 1.0}
    asked = settings(space="adarank", directions=[SPECTRAL | {"scale": 0.3}], driver=driver, **quick)
    made = run(asked, tmp_path)
    checked(made, 6)
    records = [record for record in Trajectory.read(made.folder).records if record.phase == "search"]
    space = open_problem(RunFolder.open(made.folder).config()).space
    tables = np.array([space.decode(record.vector) for record in records if record.vector is not None])
    assert set(np.unique(tables)) == {0.0, 1.0}
    assert (tables[0] != tables[-1]).any()
    assert any(((record.vector != 0) & (record.vector != 1)).any() for record in records if record.vector is not None)


@pytest.mark.parametrize("driver", ["cma", "lbfgs"])
def test_rounded_variables_need_steps(settings: Settings, tmp_path: Path, driver: str) -> None:
    config = build_config(settings(space="adarank", directions=[SPECTRAL], driver=driver, **QUICK), root=tmp_path)
    with pytest.raises(OptmergeError, match=rf"straight-through.*the driver {driver} .*adam, adamw, sgd"):
        make_plan(config, root=tmp_path)


@pytest.mark.parametrize("preset", ["polynomial", "kind-wise"])
@pytest.mark.parametrize("driver", DRIVERS[1:], ids=lambda driver: str(driver["name"]))
def test_drivers_search_joined_variables(
    settings: Settings, tmp_path: Path, preset: str, driver: dict[str, Any]
) -> None:
    checked(run(settings(space=preset, driver=driver, **QUICK), tmp_path))


@pytest.mark.parametrize("of", ["task_arithmetic", "tsv-m", "iso-c"])
def test_a_search_along_bands_starts_from_what_they_divide(settings: Settings, tmp_path: Path, of: str) -> None:
    asked = settings(directions=[SPECTRAL | {"of": of}], space={"granularity": "tensor-wise"}, **QUICK)
    made = run(asked, tmp_path)
    checked(made)
    recipe = Recipe.load(made.folder / "recipe.yaml")
    assert {direction.band for direction in recipe.directions} == {1, 2, 3}
    problem = open_problem(RunFolder.open(made.folder).config())
    able = {baseline.name for baseline in make_baselines(problem) if representable(problem, baseline)}
    whole = "method:spectral:1" if of == "iso-c" else "parts:spectral:0.3"
    assert able == {"base", whole}
    rows = {row["name"]: row["select"] for row in made.result["rows"]}
    if of == "task_arithmetic":
        assert rows[whole] == pytest.approx(rows["uniform:0.3"], rel=1e-5), "all bands alike are the task vectors"
    elif of == "iso-c":
        other = run(asked | {"directions": ["iso-c"], "output": "whole"}, tmp_path)
        compared = {row["name"]: row["select"] for row in other.result["rows"]}
        assert rows[whole] == pytest.approx(compared["method:iso-c:1"], rel=1e-5)
    vectors = [name for name, parameter in problem.family.parameters.items() if len(parameter.shape) == 1]
    assert not any(f"{vectors[0]}/spectral.{band}" in name for name in problem.space.names for band in (2, 3))


def test_the_plan_knows_which_bands_there_are(settings: Settings, tmp_path: Path) -> None:
    """What is no matrix is in the first band alone."""
    asked = settings(directions=[SPECTRAL], space={"granularity": "tensor-wise"}, **QUICK)
    config = build_config(asked, root=tmp_path)
    problem = open_problem(config)
    assert problem.space.dimension < 6 * len(problem.family.parameters)
    assert make_plan(config, root=tmp_path).dimension == problem.space.dimension


def test_bands_and_what_is_shared(settings: Settings, tmp_path: Path) -> None:
    asked = settings(directions=[SPECTRAL, "iso-c"], space={"granularity": "task-wise", "shared": True}, **QUICK)
    problem = open_problem(build_config(asked, root=tmp_path))
    assert list(problem.space.names) == ["model/spectral.1", "model/spectral.2", "model/spectral.3", "model/iso-c"]
    plan = make_plan(build_config(asked, root=tmp_path), root=tmp_path)
    assert plan.dimension == 4
    assert plan.baselines == len(make_baselines(problem))


def test_a_gradient_along_bands_is_that_of_the_loss(settings: Settings, tmp_path: Path) -> None:
    """Of the sum of bands it is that of the task vector."""
    found = {}
    for name, directions in (("experts", ["experts"]), ("bands", [SPECTRAL])):
        space = {"granularity": "task-wise", "start": 0.3}
        objective = {"terms": [{"name": "expert-kl", "normalise": "none"}]}
        asked = settings(directions=directions, space=space, objective=objective, **QUICK)
        problem = open_problem(build_config(asked, root=tmp_path))
        made = Evaluator(problem, Teachers.make(problem)).evaluate(problem.space.start, "fit", gradient=True)
        assert made.gradient is not None
        found[name] = made.gradient
    np.testing.assert_allclose(found["bands"].reshape(3, 2).sum(axis=0), found["experts"], rtol=1e-3)


def test_several_methods_at_once(settings: Settings, tmp_path: Path) -> None:
    asked = settings(directions=["experts", "iso-c", "tsv-m", SPECTRAL], space={"granularity": "layer-wise"}, **QUICK)
    made = run(asked, tmp_path)
    checked(made)
    recipe = Recipe.load(made.folder / "recipe.yaml")
    assert [direction.name for direction in recipe.directions][:4] == ["a", "b", "iso-c", "tsv-m"]
    assert len(recipe.directions) == 4 + 6


@pytest.mark.parametrize(
    "changes",
    [
        {"space": "polynomial", "driver": DRIVERS[1]},
        {"space": "kind-wise", "driver": DRIVERS[3]},
        {"space": "spectral", "directions": [SPECTRAL]},
    ],
    ids=["polynomial", "kind-wise", "spectral"],
)
def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(
    settings: Settings, tmp_path: Path, changes: dict[str, Any]
) -> None:
    asked = settings(**{**QUICK, **changes})
    whole = run(asked, tmp_path / "whole")
    asks = iter(range(10**6))
    with pytest.raises(RunInterrupted):
        run(asked, tmp_path / "cut", stop=lambda: "asked to" if next(asks) >= 7 else None)
    again = resume(tmp_path / "cut" / "run")
    assert facts(again.folder) == facts(whole.folder)
    assert equal(merged(again.folder), merged(whole.folder))


def test_mergekit_cannot_have_bands(settings: Settings, tmp_path: Path, language_settings: Settings) -> None:
    made = run(language_settings(directions=[SPECTRAL], space={"granularity": "task-wise"}, **QUICK), tmp_path)
    with pytest.raises(OptmergeError, match=r"direction spectral\.1:a is the delta of a method"):
        api.export(made.folder, "mergekit", tmp_path / "out.yaml")
    checkpoint = api.export(made.folder, "checkpoint", tmp_path / "checkpoint")
    assert equal(merged(checkpoint / "recipe.yaml"), merged(made.folder))
