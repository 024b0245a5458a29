"""Whole searches in stages: what each begins with, what it may spend, what it is judged by, and what is kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optmerge.config.load import load_config
from optmerge.config.schema import SearchConfig
from optmerge.errors import RunInterrupted
from optmerge.merging.recipe import Recipe
from optmerge.records import Record, Trajectory
from optmerge.runner.problem import open_problem
from optmerge.runner.references import absolute_references
from optmerge.runner.search import Run, resume, search
from optmerge.runner.stages import open_stage, prolonged
from optmerge.tracking.report import write_report
from optmerge.tracking.view import RunView
from optmerge.tracking.wandb_rows import RowMaker
from tests.zoo import facts

Settings = Callable[..., dict[str, Any]]
ADAM = {"name": "adam", "lr": 0.05}
CMA = {"name": "cma", "population": 4, "sigma": 0.05}


def scheduled(settings: Settings, *stages: dict[str, Any], **changes: Any) -> SearchConfig:
    made = settings(schedule=list(stages), **changes)
    del made["driver"]
    return SearchConfig.model_validate(made)


def in_stage(run: Run, stage: int, phase: str) -> list[Record]:
    return [r for r in Trajectory.read(run.folder).records if r.stage == stage and r.phase == phase]


def best_select(records: list[Record]) -> Record:
    return min((record for record in records if record.value is not None), key=lambda record: record.value or 0.0)


def test_a_chain_of_drivers_goes_on_from_the_best_on_select(settings: Settings, tmp_path: Path) -> None:
    config = scheduled(
        settings, {"driver": ADAM, "evaluations": 6}, {"driver": CMA, "evaluations": 9}, budget={"evaluations": 40}
    )
    run = search(config, root=tmp_path)
    first, second = in_stage(run, 0, "search"), in_stage(run, 1, "search")
    assert (len(first), len(second)) == (6, 9)
    assert {record.driver for record in first} == {"adam"}
    assert {record.driver for record in second} == {"cma"}
    best = best_select(in_stage(run, 0, "select"))
    assert second[0].vector_sha256 == best.vector_sha256, "not the last iterate, but the best"
    assert best_select(in_stage(run, 1, "select")).generation <= 2
    ends = run.result["stages"]
    assert [end["reason"] for end in ends] == [
        "the stage's 6 evaluations are used up",
        "the stage's 9 evaluations are used up",
    ]
    assert ends[1]["start"] == best.value
    assert run.result["best"]["select"] <= best.value
    assert run.result["evaluations"] == 15
    assert run.result["rows"][-1]["name"] == "adam+cma"
    assert (run.folder / "state" / "stage-2").is_dir()
    assert len(list((run.folder / "state").glob("*.state"))) == 1


def test_coarse_to_fine_begins_at_the_same_merge_and_never_ends_worse(settings: Settings, tmp_path: Path) -> None:
    stages: list[dict[str, Any]] = [
        {"driver": ADAM, "evaluations": 4, "granularity": granularity}
        for granularity in ("task-wise", "layer-wise", "layer-kind-wise", "tensor-wise")
    ]
    run = search(scheduled(settings, *stages, budget={"evaluations": 16}), root=tmp_path)
    dimensions = [end["dimension"] for end in run.result["stages"]]
    assert dimensions == sorted(set(dimensions)), "each stage has more variables"
    records = Trajectory.read(run.folder).records
    best = math.inf
    for stage, dimension in enumerate(dimensions):
        selects = in_stage(run, stage, "select")
        assert all(record.vector is not None and len(record.vector) == dimension for record in selects)
        if stage:
            assert selects[0].value == best, "the first iterate is the same model, to the last bit"
        best = min([best, *(record.value for record in selects if record.value is not None)])
        assert run.result["stages"][stage]["best"]["select"] == best
    chosen = records[run.result["best"]["record"]]
    assert run.recipe is not None
    merged = open_problem(load_config(run.folder / "search.yaml"))
    for number in range(1, chosen.stage + 1):
        merged = open_stage(merged, number)
    assert chosen.vector is not None
    assert np.array_equal(run.recipe.coefficients, merged.space.decode(chosen.vector))
    assert len({row["name"] for row in run.result["rows"]}) == len(run.result["rows"])


def test_finalists_are_different_merges_whatever_their_space(settings: Settings, tmp_path: Path) -> None:
    stages: list[dict[str, Any]] = [
        {"driver": ADAM, "evaluations": 2, "granularity": "task-wise"},
        {"driver": {**ADAM, "lr": 0.2}, "evaluations": 2, "granularity": "tensor-wise"},
    ]
    run = search(scheduled(settings, *stages, budget={"evaluations": 4, "finalists": 9}), root=tmp_path)
    iterates = [Trajectory.read(run.folder).records[entry["iterate"]] for entry in run.result["finalists"]]
    assert {record.stage for record in iterates} == {0, 1}
    assert len(iterates) == 3, "four iterates, of which one is the other stage's best"


def test_the_merge_of_a_stage_is_that_of_the_next_bit_for_bit(settings: Settings, tmp_path: Path) -> None:
    config = scheduled(
        settings,
        {"driver": ADAM, "evaluations": 4, "granularity": "task-wise"},
        {"driver": ADAM, "granularity": "column-wise"},
    )
    problem = open_problem(absolute_references(config, tmp_path))
    vector = np.array([0.37, 0.81])
    coarse = problem.expand(vector)
    problem.engine.apply(coarse)
    before = {name: parameter.detach().clone() for name, parameter in problem.resident.parameters.items()}
    finer = open_stage(problem, 1)
    fine = prolonged(coarse, problem.space, finer.space)
    assert np.array_equal(finer.space.decode(finer.space.encode(fine[:, finer.columns])), fine[:, finer.columns])
    finer.engine.apply(np.zeros_like(fine))
    finer.engine.apply(fine)
    for name, parameter in finer.resident.parameters.items():
        assert parameter.equal(before[name]), name


def test_few_examples_first_and_select_always_whole(settings: Settings, tmp_path: Path) -> None:
    config = scheduled(
        settings,
        {"driver": ADAM, "evaluations": 3, "examples": 6},
        {"driver": {**ADAM, "batch": 6}, "evaluations": 4, "examples": 12},
        {"driver": ADAM},
        budget={"evaluations": 9},
    )
    run = search(config, root=tmp_path)
    seen = [{record.examples for record in in_stage(run, stage, "search")} for stage in range(3)]
    assert len(seen[0]) == 1
    assert "all" not in seen[0] | seen[1]
    assert len(seen[1]) > 1, "batches of the examples that the stage has"
    assert seen[2] == {"all"}
    assert {record.examples for stage in range(3) for record in in_stage(run, stage, "select")} == {"all"}


def test_a_stage_with_another_objective_is_judged_by_it(settings: Settings, tmp_path: Path) -> None:
    accuracy = {"terms": [{"name": "accuracy", "normalise": "none"}]}
    config = scheduled(
        settings,
        {"driver": ADAM, "evaluations": 5},
        {"driver": CMA, "objective": accuracy},
        budget={"evaluations": 15},
        alarms={"collapse": "warn"},
    )
    run = search(config, root=tmp_path)
    before = best_select(in_stage(run, 0, "select"))
    start, *iterates = in_stage(run, 1, "select")
    assert start.vector_sha256 == before.vector_sha256
    assert start.value != before.value, "judged anew"
    ends = run.result["stages"]
    assert ends[1]["start"] == start.value
    assert run.result["best"]["select"] <= start.value
    assert run.result["best"]["select"] == best_select([start, *iterates]).value
    baselines = in_stage(run, 1, "baseline")
    assert [(record.name, record.split) for record in baselines[:2]] == [("base", "fit"), ("base", "select")]
    rows = {row["name"]: row["select"] for row in run.result["rows"]}
    for record in baselines[1:]:
        assert rows[record.name] == record.value, "tables compare by the last objective"
    assert all(Trajectory.read(run.folder).records[entry["iterate"]].stage == 1 for entry in run.result["finalists"])


def test_an_objective_that_reads_labels_comes_with_them(settings: Settings, tmp_path: Path) -> None:
    accuracy = {"terms": [{"name": "accuracy", "normalise": "none"}]}
    config = scheduled(settings, {"driver": ADAM, "evaluations": 2}, {"driver": CMA, "objective": accuracy})
    problem = open_problem(absolute_references(config, tmp_path))
    assert problem.calibration.tasks["a"].splits["fit"].has_labels
    config = scheduled(settings, {"driver": ADAM, "evaluations": 2}, {"driver": CMA})
    problem = open_problem(absolute_references(config, tmp_path))
    assert not problem.calibration.tasks["a"].splits["fit"].has_labels


def test_limits_of_the_whole_search_hold_over_its_stages(settings: Settings, tmp_path: Path) -> None:
    stages: list[dict[str, Any]] = [{"driver": ADAM, "evaluations": 6}, {"driver": CMA}]
    run = search(scheduled(settings, *stages, budget={"evaluations": 13}), root=tmp_path)
    assert run.result["reason"] == "the budget of 13 evaluations is used up"
    assert [end["evaluations"] for end in run.result["stages"]] == [6, 7]
    target = run.result["stages"][0]["best"]["select"]
    run = search(
        scheduled(settings, *stages, budget={"evaluations": 13, "target": target}, output="second"), root=tmp_path
    )
    assert run.result["reason"] == f"the target {target:g} on select is reached"
    assert len(run.result["stages"]) == 1, "the second stage never began"
    run = search(
        scheduled(settings, *stages, budget={"evaluations": 13, "minutes": 1e-6}, output="third"), root=tmp_path
    )
    assert run.result["reason"].startswith("the budget of 1e-06 minutes")
    assert (run.result["evaluations"], len(run.result["stages"])) == (1, 1)


def test_patience_ends_a_stage_and_not_the_search(settings: Settings, tmp_path: Path) -> None:
    config = scheduled(
        settings,
        {"driver": {"name": "adam", "lr": 1.0}, "evaluations": 20, "patience": 2},
        {"driver": ADAM, "evaluations": 3},
        budget={"evaluations": 30},
        alarms={"collapse": "warn"},
    )
    run = search(config, root=tmp_path)
    first, second = run.result["stages"]
    assert first["reason"] == "no improvement on select in 2 scores of the stage"
    assert first["evaluations"] < 20
    assert second["evaluations"] == 3


def test_resume_after_an_interruption_anywhere_is_bit_exact(settings: Settings, tmp_path: Path) -> None:
    accuracy = {"terms": [{"name": "accuracy", "normalise": "none"}]}
    stages: list[dict[str, Any]] = [
        {"driver": {**ADAM, "batch": 8}, "evaluations": 3, "granularity": "task-wise", "examples": 16},
        {"driver": ADAM, "evaluations": 3, "granularity": "tensor-wise"},
        {"driver": {**CMA, "scale": "fisher"}, "granularity": "tensor-wise", "objective": accuracy},
    ]

    def config(output: str) -> SearchConfig:
        return scheduled(settings, *stages, budget={"evaluations": 16}, alarms={"collapse": "warn"}, output=output)

    whole = search(config("whole"), root=tmp_path)
    expected = facts(whole.folder)
    folder = tmp_path / "parts"
    calls = 0

    def now_and_then() -> str | None:
        nonlocal calls
        calls += 1
        return "made to stop" if calls % 4 == 0 else None

    with pytest.raises(RunInterrupted):
        search(config("parts"), root=tmp_path, stop=now_and_then)
    for _ in range(30):
        try:
            run = resume(folder, stop=now_and_then)
            break
        except RunInterrupted:
            continue
    assert facts(folder) == expected
    assert run.result["stages"] == whole.result["stages"]
    assert [row["select"] for row in run.result["rows"]] == [row["select"] for row in whole.result["rows"]]
    assert Recipe.load(folder / "recipe.yaml").coefficients.tolist() == whole.recipe.coefficients.tolist()  # type: ignore[union-attr]


def test_views_read_vectors_by_their_stage(settings: Settings, tmp_path: Path) -> None:
    stages: list[dict[str, Any]] = [
        {"driver": ADAM, "evaluations": 3, "granularity": "task-wise"},
        {"driver": ADAM, "granularity": "layer-wise"},
    ]
    run = search(scheduled(settings, *stages, budget={"evaluations": 6}), root=tmp_path)
    view = RunView.open(run.folder)
    assert view.driver == "adam"
    assert [len(view.variables(stage)) for stage in (0, 1)] == [end["dimension"] for end in run.result["stages"]]
    assert [point.evaluations for point in view.stage_begins] == [3]
    assert view.best is not None
    assert view.best.record == run.result["best"]["record"]
    maker = RowMaker(view.variables(0).compact, [view.variables(1).compact])
    rows = [maker.row(record) for record in view.records]
    means = [row["coefficient/a/mean"] for row in rows if row["phase"] == "search"]
    vectors = [record.vector for record in view.records if record.phase == "search"]
    assert means[0] == vectors[0][0]  # type: ignore[index]
    assert len(means) == 6
    assert [row.get("stage") for row in rows if row["phase"] == "search"] == [None] * 3 + [1] * 3
    report = write_report(run.folder).read_text(encoding="utf-8")
    assert "## Stages" in report
    for end in run.result["stages"]:
        assert end["reason"] in report


def test_optuna_mirrors_every_stage(settings: Settings, tmp_path: Path) -> None:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    from optmerge.tracking.optuna_mirror import FILE, OptunaMirror

    stages: list[dict[str, Any]] = [
        {"driver": ADAM, "evaluations": 2, "granularity": "task-wise"},
        {"driver": CMA, "granularity": "layer-wise"},
    ]
    run = search(scheduled(settings, *stages, budget={"evaluations": 5}), root=tmp_path, sinks=[OptunaMirror()])
    (study,) = optuna.get_all_study_summaries(JournalStorage(JournalFileBackend(str(run.folder / FILE))))
    trials = optuna.load_study(
        study_name=study.study_name, storage=JournalStorage(JournalFileBackend(str(run.folder / FILE)))
    ).trials
    dimensions = [end["dimension"] for end in run.result["stages"]]
    assert [len(trial.params) for trial in trials] == [dimensions[0]] * 2 + [dimensions[1]] * 3
    assert [trial.user_attrs.get("stage") for trial in trials] == [None, None, 1, 1, 1]
