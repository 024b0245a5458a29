"""Searches that choose a method and the values of its settings: end to end, exact recipes, resume after a kill."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optmerge import api
from optmerge.config.load import build_config, dump_config
from optmerge.config.methods import TiesSplitConfig
from optmerge.errors import ConfigError
from optmerge.merging.recipe import Recipe
from optmerge.records import Record, Trajectory
from optmerge.runner.baselines import make_baselines, representable
from optmerge.runner.folder import RunFolder
from optmerge.runner.plan import make_plan
from optmerge.runner.problem import Problem, open_problem
from optmerge.runner.search import Run, search
from tests.runner.processes import finish_search, start_search, wait_for_records
from tests.zoo import facts

Settings = Callable[..., dict[str, Any]]
METHODS: list[Any] = ["task_arithmetic", {"name": "ties-split", "density": [0.1, 0.2, 0.6]}, "tsv-m"]


@pytest.fixture
def choosing(settings: Settings) -> Settings:
    def make(**changes: Any) -> dict[str, Any]:
        usual = {
            "methods": METHODS,
            "space": {"granularity": "task-wise"},
            "driver": {"name": "cma", "population": 6},
            "budget": {"evaluations": 25},
        }
        return settings(**(usual | changes))

    return make


def run(settings: dict[str, Any], root: Path) -> Run:
    return search(build_config(settings, root=root), root=root)


def asked(made: Run) -> list[Record]:
    return [record for record in Trajectory.read(made.folder).records if record.phase == "search"]


def resident(problem: Problem, vector: np.ndarray[Any, Any]) -> dict[str, torch.Tensor]:
    """The resident model at a vector, by the base's names on disk."""
    problem.engine.apply(problem.expand(vector))
    return {
        disk: problem.resident.parameters[name].data.clone()
        for name in problem.family.parameters
        for disk in problem.family.disk_names(name)
    }


@pytest.mark.parametrize(
    "driver",
    [
        {"name": "cma", "population": 6, "sigma": 0.3},
        {"name": "optuna", "startup": 8},
        {"name": "optuna", "sampler": "sobol"},
        {"name": "natural-niches", "mutation": 0.3},
    ],
    ids=lambda driver: "-".join([driver["name"], driver.get("sampler", "")]),
)
def test_a_choice_is_searched_and_its_recipe_is_exact(
    choosing: Settings, tmp_path: Path, driver: dict[str, Any]
) -> None:
    made = run(choosing(driver=driver), tmp_path)
    records = asked(made)
    assert len(records) == 25
    assert not any(record.error for record in records)
    choices = np.array([record.vector[-2:] for record in records if record.vector is not None])
    assert (choices == np.rint(choices)).all()
    assert len({tuple(choice) for choice in choices.tolist()}) > 3
    problem = open_problem(RunFolder.open(made.folder).config())
    seen = set()
    for record in records:  # the recipe of any record is the model that was judged, and says what was chosen
        assert record.vector is not None
        recipe = problem.recipe(record.vector, {})
        first, second = recipe.directions
        if first.name in seen:
            continue
        seen.add(first.name)
        assert (first.expert, second.expert) == ("a", "b")
        number, density = record.vector[-2:].astype(int).tolist()
        assert recipe.method == ["task_arithmetic", "ties-split", "tsv-m"][number]
        assert (first.config is None) == (number == 0)
        if number == 1:
            assert first.config == second.config == TiesSplitConfig(density=[0.1, 0.2, 0.6][density])
        folder = tmp_path / f"recipe-{len(seen)}"
        folder.mkdir()
        recipe.save(folder / "recipe.yaml")
        merged, judged = api.merge(folder / "recipe.yaml"), resident(problem, record.vector)
        assert judged.keys() <= merged.keys()
        assert all(torch.equal(merged[name], judged[name]) for name in judged)
    assert len(seen) > 1
    assert len(Recipe.load(made.folder / "recipe.yaml").directions) == 2


def test_a_density_decides_what_is_merged(choosing: Settings, tmp_path: Path) -> None:
    problem = open_problem(build_config(choosing(), root=tmp_path))
    assert list(problem.space.names) == ["model/a", "model/b", "method", "ties-split.density"]
    base = resident(problem, np.array([0.0, 0.0, 1.0, 0.0]))
    moved = []
    for density in range(3):
        model = resident(problem, np.array([0.5, 0.5, 1.0, float(density)]))
        moved.append(sum(int((model[name] != base[name]).sum()) for name in base))
    assert moved[0] < moved[1] < moved[2]
    one = resident(problem, np.array([0.5, 0.5, 0.0, 0.0]))
    other = resident(problem, np.array([0.5, 0.5, 0.0, 2.0]))
    assert all(torch.equal(one[name], other[name]) for name in one)  # task arithmetic has no density


def test_baselines_are_scored_at_usual_values_and_can_be_the_start(choosing: Settings, tmp_path: Path) -> None:
    problem = open_problem(build_config(choosing(), root=tmp_path))
    baselines = make_baselines(problem)
    names = [baseline.name for baseline in baselines]
    assert {"uniform:0.3", "parts:ties-split[density=0.2]:0.3", "parts:tsv-m:0.6"} <= set(names)
    assert not any("density=0.6" in name for name in names)
    able = [baseline for baseline in baselines if representable(problem, baseline)]
    assert {"uniform:0.3", "parts:ties-split[density=0.2]:0.3", "parts:tsv-m:0.6"} <= {each.name for each in able}
    for baseline in able:
        table = baseline.table[:, problem.columns]
        assert problem.space.decode(problem.space.encode(table)) == pytest.approx(table)


def test_the_plan_counts_baselines_and_variables(choosing: Settings, tmp_path: Path) -> None:
    plan = make_plan(build_config(choosing(), root=tmp_path), root=tmp_path)
    assert plan.dimension == 4
    problem = open_problem(build_config(choosing(), root=tmp_path))
    assert plan.baselines == len(make_baselines(problem))


WHOLES = ["experts", {"name": "one-of", "methods": ["iso-c", {"name": "ties", "density": [0.2, 0.6]}]}]


@pytest.mark.parametrize("driver", [{"name": "cma", "population": 6, "sigma": 0.3}, {"name": "optuna", "startup": 8}])
def test_a_whole_method_is_chosen_beside_the_experts(
    choosing: Settings, tmp_path: Path, driver: dict[str, Any]
) -> None:
    wanted = choosing(methods=None, directions=WHOLES, driver=driver, limit=8, budget={"evaluations": 15})
    made = run(wanted, tmp_path)
    problem = open_problem(RunFolder.open(made.folder).config())
    assert list(problem.space.names) == ["model/a", "model/b", "model/one-of", "method", "ties.density"]
    names = {row["name"] for row in made.result["rows"]}
    assert {"method:iso-c:1", "method:ties[density=0.2]:1"} <= names
    assert not any("density=0.6" in name for name in names)
    assert make_plan(build_config(wanted, root=tmp_path), root=tmp_path).baselines == len(make_baselines(problem))
    seen = {}
    for record in asked(made):
        assert record.error is None
        assert record.vector is not None
        recipe = problem.recipe(record.vector, {})
        third = recipe.directions[2]
        number, density = record.vector[-2:].astype(int).tolist()
        assert third.name == ["iso-c", f"ties[density={[0.2, 0.6][density]}]"][number]
        assert (third.kind, recipe.method) == ("method", "task_arithmetic")
        seen[third.name] = (recipe, record.vector)
    assert len(seen) > 1
    for number, (recipe, vector) in enumerate(seen.values()):
        (tmp_path / str(number)).mkdir()
        recipe.save(tmp_path / str(number) / "recipe.yaml")
        merged, judged = api.merge(tmp_path / str(number) / "recipe.yaml"), resident(problem, vector)
        assert all(torch.equal(merged[name], judged[name]) for name in judged)


def test_the_file_that_a_run_keeps_is_the_same_search(choosing: Settings, tmp_path: Path) -> None:
    config = build_config(choosing(), root=tmp_path)
    (tmp_path / "kept.yaml").write_text(dump_config(config))
    from optmerge.config.load import load_config

    assert load_config(tmp_path / "kept.yaml") == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"driver": "adam"}, r"driver is adam, which follows a gradient, and a choice among methods has none"),
        ({"method": "dare"}, r"method is dare, and methods lists what is chosen among"),
        ({"directions": ["iso-c"]}, r"directions has no 'experts'"),
        ({"methods": ["ties"]}, r"methods.*ties is not a sum of one part per expert"),
        ({"methods": [{"name": "ties-split", "density": [0.4, 0.2]}]}, r"methods.*rising order"),
    ],
)
def test_what_does_not_go_with_a_choice(
    choosing: Settings, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config(choosing(**changes), root=tmp_path)


def test_sigkill_and_resume_equal_an_uninterrupted_run(choosing: Settings, tmp_path: Path) -> None:
    wanted = choosing(budget={"evaluations": 40})
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    finish_search(wanted, tmp_path / "whole")
    total = len(Trajectory.read(tmp_path / "whole" / "run").records)
    generator = np.random.default_rng(int.from_bytes(os.urandom(4), "little"))
    for after in sorted(generator.integers(0, total - 5, 3).tolist()):
        process = start_search(wanted, tmp_path / "killed")
        wait_for_records(tmp_path / "killed" / "run", after, process)
        time.sleep(float(generator.uniform(0.0, 0.03)))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
    finish_search(wanted, tmp_path / "killed")
    assert facts(tmp_path / "killed" / "run") == facts(tmp_path / "whole" / "run")
    recipes = [(tmp_path / name / "run" / "recipe.yaml").read_text() for name in ("whole", "killed")]
    assert recipes[0] == recipes[1]
