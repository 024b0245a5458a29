"""Whole searches on a tiny zoo: phases, records, results, resume, and the laws of the splits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optmerge.config.load import build_config
from optmerge.errors import ConfigError, RunError, RunInterrupted
from optmerge.merging.recipe import Recipe
from optmerge.records import Trajectory
from optmerge.runner.baselines import make_baselines, representable
from optmerge.runner.problem import open_problem
from optmerge.runner.search import Run, resume, search
from tests.zoo import facts

Settings = Callable[..., dict[str, Any]]


def run(settings: dict[str, Any], root: Path, **options: Any) -> Run:
    return search(build_config(settings, root=root), root=root, **options)


@pytest.mark.parametrize("driver", [{"name": "adam", "lr": 0.05}, {"name": "cma", "population": 4}, {"name": "optuna"}])
@pytest.mark.parametrize("granularity", ["task-wise", "tensor-wise"])
def test_a_search_lowers_the_objective_and_leaves_a_whole_run(
    settings: Settings, tmp_path: Path, driver: dict[str, Any], granularity: str
) -> None:
    made = run(settings(driver=driver, space={"granularity": granularity}), tmp_path)
    assert made.result["status"] == "finished"
    assert made.result["reason"] == "the budget of 8 evaluations is used up"
    records = Trajectory.read(made.folder).records
    assert [record.id for record in records] == list(range(len(records)))
    assert sum(record.phase == "search" for record in records) == 8
    base = next(record for record in records if record.name == "base" and record.split == "select")
    assert base.value == pytest.approx(1.0)  # each task is divided by the base's own loss
    best = made.result["best"]["select"]
    grid = [
        record.value
        for record in records
        if record.phase == "baseline"
        and record.split == "select"
        and record.name
        and record.name.startswith(("uniform", "average"))
    ]
    assert best <= min(value for value in grid if value is not None)
    assert {record.split for record in records if record.phase in ("search",)} == {"fit"}
    recipe = Recipe.load(made.folder / "recipe.yaml")
    assert made.recipe is not None
    assert np.array_equal(recipe.coefficients, made.recipe.coefficients)
    names = {row["name"] for row in made.result["rows"]}
    assert {"base", "expert:a", "expert:b", "average", "uniform:0.3", driver["name"]} <= names
    assert json.loads((made.folder / "manifest.json").read_text())["hardware"]["threads"] == torch.get_num_threads()


def test_experts_keep_their_own_behaviour_in_the_baselines(settings: Settings, tmp_path: Path) -> None:
    made = run(settings(), tmp_path)
    rows = {row["name"]: row for row in made.result["rows"]}
    assert rows["expert:a"]["report"]["a"]["agreement"] == 1.0
    assert rows["expert:b"]["report"]["b"]["agreement"] == 1.0
    assert rows["expert:a"]["report"]["b"]["agreement"] < 1.0


def test_the_report_split_never_steers(settings: Settings, tmp_path: Path) -> None:
    """Other labels on the report change the report's accuracy and nothing else."""
    made = run(settings(), tmp_path / "a")
    changed = settings()
    for task in changed["tasks"].values():
        source = Path(task["data"])
        rows = [json.loads(line) for line in source.read_text().splitlines()]
        for row in rows:
            row["label"] = "LABEL_0"
        task["data"] = str(tmp_path / source.name)
        Path(task["data"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = run(changed, tmp_path / "b")
    searched = [fact for fact in facts(made.folder) if fact[3] != "report"]
    assert searched == [fact for fact in facts(other.folder) if fact[3] != "report"]
    assert made.result["rows"] != other.result["rows"]


@pytest.mark.parametrize("driver", [{"name": "adam", "batch": 8}, {"name": "cma", "population": 4}, {"name": "optuna"}])
@pytest.mark.parametrize("stop_at", [0, 6, 11])
def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(
    settings: Settings, tmp_path: Path, driver: dict[str, Any], stop_at: int
) -> None:
    whole = run(settings(driver=driver), tmp_path / "whole")
    asked = iter(range(10**6))
    with pytest.raises(RunInterrupted):
        run(settings(driver=driver), tmp_path / "cut", stop=lambda: "asked to" if next(asked) >= stop_at else None)
    moved = tmp_path / "moved"
    (tmp_path / "cut" / "run").rename(moved)  # a run may be copied elsewhere
    again = resume(moved)
    assert facts(moved) == facts(whole.folder)
    assert (moved / "recipe.yaml").read_text().replace("moved", "run") == (whole.folder / "recipe.yaml").read_text()
    assert again.result["best"] == whole.result["best"]


def test_resume_of_a_finished_run_changes_nothing(settings: Settings, tmp_path: Path) -> None:
    made = run(settings(), tmp_path)
    before = (made.folder / "trajectory.jsonl").read_bytes()
    again = resume(made.folder)
    assert again.result == made.result
    assert (made.folder / "trajectory.jsonl").read_bytes() == before


def test_another_run_in_the_folder_is_not_touched(settings: Settings, tmp_path: Path) -> None:
    made = run(settings(), tmp_path)
    before = (made.folder / "trajectory.jsonl").read_bytes()
    with pytest.raises(RunError, match=r"holds another run.*optmerge resume"):
        run(settings(), tmp_path)
    assert (made.folder / "trajectory.jsonl").read_bytes() == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match=r"exists and is not empty"):
        run(settings(output="other"), tmp_path)


def test_resume_refuses_what_has_changed_and_names_it(settings: Settings, tmp_path: Path, zoo: Path) -> None:
    import shutil

    shutil.copytree(zoo, tmp_path / "zoo")
    text = json.dumps(settings()).replace(str(zoo), str(tmp_path / "zoo"))
    asked = iter(range(10**6))
    with pytest.raises(RunInterrupted):
        run(json.loads(text), tmp_path, stop=lambda: "asked to" if next(asked) > 5 else None)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    data = tmp_path / "zoo" / "two.jsonl"
    data.write_text(data.read_text() + json.dumps({"text": "w1 w2 w59 w58 w3", "label": "LABEL_0"}) + "\n")
    weights = tmp_path / "zoo" / "one" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(RunError, match=r"the model a \(.*one\) has changed; the data of task b has changed"):
        resume(tmp_path / "run")
    manifest["hardware"]["threads"] = 99
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match=r"threads was 99.*OMP_NUM_THREADS=99"):
        resume(tmp_path / "run")


def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not a run: it has no search\.yaml"):
        resume(tmp_path)


def test_the_start_is_the_best_baseline_of_the_space(settings: Settings, tmp_path: Path) -> None:
    made = run(settings(directions=["experts", "iso-c"]), tmp_path)
    records = Trajectory.read(made.folder).records
    select = {
        record.name: record.value for record in records if record.phase == "baseline" and record.split == "select"
    }
    first = next(record for record in records if record.phase == "select")
    assert "method:iso-c:1" in select
    assert first.value == pytest.approx(min(value for value in select.values() if value is not None), rel=1e-6)


def test_a_baseline_out_of_bounds_is_no_start(settings: Settings, tmp_path: Path) -> None:
    problem = open_problem(
        build_config(settings(space={"granularity": "task-wise", "bounds": [0, 0.5]}), root=tmp_path)
    )
    able = {baseline.name for baseline in make_baselines(problem) if representable(problem, baseline)}
    assert able == {"base", "average", "uniform:0.3"}


def test_adam_with_accuracy_is_refused_before_anything_is_written(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs a gradient.*accuracy"):
        run(settings(objective={"terms": [{"name": "accuracy"}]}), tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_failing_model_gives_failed_records_and_the_search_goes_on(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optmerge.merging.engine import Engine

    apply, calls = Engine.apply, iter(range(10**6))

    def failing(self: Engine, table: Any) -> int:
        if next(calls) == 22:
            raise torch.OutOfMemoryError("made to fail")
        return apply(self, table)

    monkeypatch.setattr(Engine, "apply", failing)
    made = run(settings(driver={"name": "cma", "population": 4}), tmp_path)
    errors = [record.error for record in Trajectory.read(made.folder).records if record.error]
    assert errors == ["OutOfMemoryError: made to fail"]
    assert made.result["status"] == "finished"


def test_a_full_disk_ends_the_run_in_words_and_it_can_be_resumed(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    whole = run(settings(), tmp_path / "whole")
    sync, calls = Trajectory._sync, iter(range(10**6))

    def failing(trajectory: Trajectory) -> None:
        if next(calls) == 25:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(trajectory)

    with monkeypatch.context() as patch:
        patch.setattr(Trajectory, "_sync", failing)
        with pytest.raises(RunError, match=r"trajectory\.jsonl: the disk is full"):
            run(settings(), tmp_path / "full")
    resume(tmp_path / "full" / "run")
    assert facts(tmp_path / "full" / "run") == facts(whole.folder)


def test_a_recipe_refuses_a_model_that_has_changed(settings: Settings, tmp_path: Path, zoo: Path) -> None:
    import shutil
    from dataclasses import replace

    from optmerge.errors import RecipeError
    from optmerge.merging.recipe import ModelEntry, open_recipe

    recipe = run(settings(), tmp_path).recipe
    assert recipe is not None
    shutil.copytree(zoo / "two", tmp_path / "two")
    weights = tmp_path / "two" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(bytes(content))
    entry = ModelEntry(str(tmp_path / "two"), recipe.experts["b"].sha256)
    changed = replace(recipe, experts={**recipe.experts, "b": entry})
    with pytest.raises(RecipeError, match=r"b \(.*two\) is not the model that this recipe was made for"):
        open_recipe(changed)
