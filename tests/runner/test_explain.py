"""`explain` on finished runs: what it measures, against evaluations made by hand, and what it leaves alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optmerge.config.load import build_config
from optmerge.errors import RunError
from optmerge.records import Trajectory
from optmerge.runner.evaluator import Evaluator
from optmerge.runner.explain import best_table, explain
from optmerge.runner.folder import RunFolder
from optmerge.runner.knockout import choose_blocks
from optmerge.runner.problem import Problem, open_problem
from optmerge.runner.search import Run, search
from optmerge.runner.sensitivity import allowed_moves, deal, thinned
from optmerge.runner.teachers import Teachers
from optmerge.tracking.explain_page import write_explanation
from tests.zoo import make_zoo, zoo_settings

Settings = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTMERGE_CACHE", str(cache))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Run:
    """A finished search by layer and kind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTMERGE_CACHE", str(cache))
        root = make_zoo(tmp_path_factory.mktemp("zoo"), "bert")
        made = zoo_settings(root, space={"granularity": "layer-kind-wise", "start": 0.4}, budget={"evaluations": 3})
        return search(build_config(made, root=root), root=root)


@pytest.fixture(scope="module")
def found(made: Run, cache: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTMERGE_CACHE", str(cache))
        return explain(made.folder)


def opened(made: Run) -> tuple[Problem, Evaluator]:
    """The run's problem with its normalisers, made without `explain`."""
    problem = open_problem(RunFolder.open(made.folder).config())
    for record in Trajectory.read(made.folder).records:
        if record.name == "base" and record.split != "report":
            problem.objective.on(record.split).set_normalisers(record.split, record.metrics)
    return problem, Evaluator(problem, Teachers.make(problem))


def test_the_objective_is_that_of_the_best_record(made: Run, found: dict[str, Any]) -> None:
    assert found["objective"] == pytest.approx(made.result["best"]["select"], rel=1e-12)


def test_a_block_is_the_objective_with_its_coefficients_at_zero(made: Run, found: dict[str, Any]) -> None:
    problem, evaluator = opened(made)
    assert made.recipe is not None
    table = best_table(problem, made.recipe)
    entry = next(e for e in found["ablation"]["blocks"] if (e["direction"], e["group"]) == ("b", "layer.1.mlp"))
    row = next(n for n, group in enumerate(problem.space.groups) if group.name == "layer.1.mlp")
    table[row, problem.column("b")] = 0.0
    measured = evaluator.measure(table, "select", objective=True)
    value, per_task = problem.objective.on("select").combine("select", measured.means)
    assert entry["rise"] == pytest.approx(value - found["objective"], rel=1e-9)
    assert entry["low"] <= entry["rise"] <= entry["high"]
    for task, part in per_task.items():
        assert entry["per_task"][task][0] == pytest.approx(part - found["per_task"][task], rel=1e-6, abs=1e-12)


def test_every_group_and_direction_is_ablated_once(made: Run, found: dict[str, Any]) -> None:
    problem, _ = opened(made)
    assert found["ablation"]["granularity"] == "tensor group"
    told = [(entry["direction"], entry["group"]) for entry in found["ablation"]["blocks"]]
    assert sorted(told) == sorted((name, group.name) for name in ("a", "b") for group in problem.space.groups)
    assert [entry["direction"] for entry in found["reliance"]] == ["a", "b"]


def test_a_task_without_the_only_expert_is_as_far_off_as_the_base(settings: Settings, tmp_path: Path) -> None:
    only_b = {"granularity": "layer-wise", "start": 0.9, "rules": [{"direction": "a", "freeze": 0.0}]}
    run = search(build_config(settings(space=only_b, budget={"evaluations": 1}), root=tmp_path), root=tmp_path)
    found = explain(run.folder, cheap=True)
    (entry,) = found["reliance"]
    assert entry["direction"] == "b"
    rise, low, high = entry["per_task"]["b"]
    assert rise == pytest.approx(1.0 - found["per_task"]["b"], rel=1e-9)
    assert 0 < low <= rise <= high


def test_what_could_be_dropped_is_measured_together(made: Run, found: dict[str, Any]) -> None:
    problem, evaluator = opened(made)
    assert made.recipe is not None
    for entry in found["droppable"]:
        table = best_table(problem, made.recipe)
        rows = [n for n, group in enumerate(problem.space.groups) if group.name in entry["groups"]]
        assert len(rows) == len(entry["groups"])
        table[rows, problem.column(entry["direction"])] = 0.0
        measured = evaluator.measure(table, "select", objective=True)
        value, _ = problem.objective.on("select").combine("select", measured.means)
        assert entry["rise"] == pytest.approx(value - found["objective"], rel=1e-9)


def test_sensitivity_is_the_spread_of_the_parts_gradients(made: Run, found: dict[str, Any]) -> None:
    problem, evaluator = opened(made)
    assert made.recipe is not None
    vector = problem.space.encode(made.recipe.coefficients)
    told = found["sensitivity"]
    parts = deal(problem.calibration.fit_sizes(), told["batches"])
    rows = []
    for part in parts:
        gradient = evaluator.evaluate(vector, "fit", examples=part, gradient=True).gradient
        assert gradient is not None
        rows.append(gradient)
    squares = np.stack(rows) ** 2
    by_name = {variable["name"]: variable for variable in told["variables"]}
    assert set(by_name) == set(problem.space.names)
    for at, name in enumerate(problem.space.names):
        assert by_name[name]["fisher"] == pytest.approx(squares[:, at].mean(), rel=1e-6)
        error = squares[:, at].std(ddof=1) / np.sqrt(len(parts))
        assert by_name[name]["fisher_error"] == pytest.approx(error, rel=1e-6)
    order = [variable["fisher"] for variable in told["variables"]]
    assert order == sorted(order, reverse=True)


def test_a_move_costs_about_what_it_says(found: dict[str, Any]) -> None:
    checks = found["sensitivity"]["checks"]
    assert len(checks) == 3
    for check in checks:
        assert 0.003 < check["rise"] < 0.03


def test_coefficients_are_means_by_layer_and_kind(made: Run, found: dict[str, Any]) -> None:
    told = found["coefficients"]
    assert "layer.0" in told["rows"]
    assert {"attention", "mlp", "embedding"} <= set(told["kinds"])
    assert made.recipe is not None
    row = next(n for n, group in enumerate(made.recipe.groups) if group.name == "layer.0.mlp")
    shown = told["values"]["b"][told["rows"].index("layer.0")][told["kinds"].index("mlp")]
    assert shown == pytest.approx(made.recipe.coefficients[row, 1])
    assert told["values"]["b"][told["rows"].index("layer.0")][told["kinds"].index("embedding")] is None


def test_the_trajectory_is_left_alone_and_the_facts_are_json(made: Run) -> None:
    before = {path.name: path.read_bytes() for path in made.folder.iterdir() if path.is_file()}
    costs: list[str] = []
    stages: set[str] = set()
    found = explain(made.folder, cheap=True, tell=costs.append, progress=lambda stage, done, total: stages.add(stage))
    after = {path.name: path.read_bytes() for path in made.folder.iterdir() if path.is_file()}
    assert before == after
    json.dumps(found, allow_nan=False)
    assert found["ablation"]["blocks"] == found["droppable"] == []
    assert any("whole direction" in text and "about" in text for text in costs)
    assert {"sensitivity", "whole directions"} <= stages


def test_fewer_passes_mean_coarser_blocks(made: Run) -> None:
    problem, _ = opened(made)
    assert made.recipe is not None
    table, columns = best_table(problem, made.recipe), problem.columns
    sizes = {}
    for passes in (100, 11, 3):
        granularity, blocks = choose_blocks(problem, table, columns, passes)
        assert len(blocks) <= passes
        sizes[granularity] = len(blocks)
        for column in columns if blocks else ():
            rows = np.concatenate([b.rows for b in blocks if b.column == column and b.rows is not None])
            assert sorted(rows.tolist()) == list(range(problem.space.num_rows))
    assert list(sizes) == ["tensor group", "layer", ""]


def test_an_objective_without_a_gradient_has_ablations_only(settings: Settings, tmp_path: Path) -> None:
    made = settings(
        objective={"terms": [{"name": "agreement"}]}, driver={"name": "cma"}, space={"granularity": "task-wise"}
    )
    run = search(build_config(made, root=tmp_path), root=tmp_path)
    found = explain(run.folder)
    assert found["sensitivity"] is None
    assert "agreement has no gradient" in found["why_no_sensitivity"]
    assert found["reliance"]


def test_a_choice_among_methods_is_explained_by_what_was_chosen(settings: Settings, tmp_path: Path) -> None:
    made = settings(
        methods=["task_arithmetic", {"name": "ties-split", "density": [0.2, 0.6]}],
        space={"granularity": "task-wise"},
        driver={"name": "cma"},
        budget={"evaluations": 4},
    )
    run = search(build_config(made, root=tmp_path), root=tmp_path)
    assert run.recipe is not None
    found = explain(run.folder)
    names = [direction.name for direction in run.recipe.directions]
    assert found["directions"] == list(found["coefficients"]["values"]) == names
    told = found["sensitivity"]
    assert told["dimension"] == 2, "a choice has no slope"
    assert {variable["name"] for variable in told["variables"]} == {"model/a", "model/b"}


def test_an_objective_of_nothing_is_explained(settings: Settings, tmp_path: Path) -> None:
    """One expert as it is: its divergence from itself is 0."""
    made = settings(space={"granularity": "task-wise", "start": 1.0}, budget={"evaluations": 1})
    made["experts"], made["tasks"] = {"a": made["experts"]["a"]}, {"a": made["tasks"]["a"]}
    run = search(build_config(made, root=tmp_path), root=tmp_path)
    found = explain(run.folder)
    assert found["objective"] == 0.0
    assert found["sensitivity"]["checks"] == ()
    assert "objective is 0" in found["sensitivity"]["why_no_curvature"]
    page = write_explanation(run.folder, found)
    assert "a relies on a (+1 without it)" in page.read_text()


def test_a_schedule_is_explained_in_the_stage_of_its_best(settings: Settings, tmp_path: Path) -> None:
    stages = [
        {"driver": {"name": "adam", "lr": 0.05}, "granularity": "task-wise", "evaluations": 2},
        {"driver": {"name": "adam", "lr": 0.05}, "granularity": "layer-wise"},
    ]
    made = settings(schedule=stages, space={"granularity": "layer-wise", "start": 0.4})
    del made["driver"]
    run = search(build_config(made, root=tmp_path), root=tmp_path)
    best = Trajectory.read(run.folder).records[run.result["best"]["record"]]
    assert best.stage == 1, "the case is of a best in the last stage"
    found = explain(run.folder)
    assert found["objective"] == pytest.approx(run.result["best"]["select"], rel=1e-12)
    assert found["sensitivity"]["dimension"] == len(best.vector if best.vector is not None else ())
    assert {entry["group"] for entry in found["ablation"]["blocks"]} >= {"layer.0", "layer.1"}


def test_a_run_that_is_not_finished_or_has_changed_is_refused(settings: Settings, tmp_path: Path) -> None:
    run = search(build_config(settings(budget={"evaluations": 1}), root=tmp_path), root=tmp_path)
    manifest = json.loads((run.folder / "manifest.json").read_text())
    changed = manifest | {"data": dict.fromkeys(manifest["data"], "other")}
    (run.folder / "manifest.json").write_text(json.dumps(changed))
    with pytest.raises(RunError, match="the data of task a has changed; the data of task b has changed"):
        explain(run.folder)
    (run.folder / "result.json").write_text('{"status": "interrupted", "reason": ""}')
    with pytest.raises(RunError, match="is not finished, so there is no best recipe"):
        explain(run.folder)


def test_a_run_that_lacks_what_this_version_needs_is_refused_in_one_paragraph(
    settings: Settings, tmp_path: Path
) -> None:
    run = search(build_config(settings(budget={"evaluations": 1}), root=tmp_path), root=tmp_path)

    def refused(name: str, text: str) -> str:
        file = run.folder / name
        before = file.read_bytes()
        file.write_text(text)
        with pytest.raises(RunError) as told:
            explain(run.folder)
        file.write_bytes(before)
        return str(told.value)

    assert "is no manifest of a run" in refused("manifest.json", '{"created": "long ago"}')
    assert "names no record of the trajectory as the best" in refused("result.json", '{"status": "finished"}')
    lines = [json.loads(line) for line in (run.folder / "trajectory.jsonl").read_text().splitlines()]
    for line in lines:
        line["metrics"] = {task: {"kl": 1.0} for task in line["metrics"]}
    told = refused("trajectory.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    assert "has no expert-kl of the base on task a" in told
    assert f"optmerge search {run.folder / 'search.yaml'} --output FOLDER" in told
    (run.folder / "manifest.json").unlink()
    with pytest.raises(RunError, match="There is no manifest"):
        explain(run.folder)


def test_moves_solve_the_second_order_model() -> None:
    gradient, curvature = np.array([0.5, -3.0, 0.0, 0.0]), np.array([2.0, 0.0, 8.0, 0.0])
    moves = allowed_moves(gradient, curvature, 0.01)
    assert np.isinf(moves[3])
    rise = np.abs(gradient[:3]) * moves[:3] + curvature[:3] * moves[:3] ** 2 / 2
    np.testing.assert_allclose(rise, 0.01, rtol=1e-12)


def test_examples_are_thinned_evenly_or_not_at_all() -> None:
    assert thinned({"a": 10, "b": 4}, 0.5) == {"a": (0, 2, 4, 6, 8), "b": (0, 2)}
    assert thinned({"a": 10, "b": 4}, 3.0) == {"a": tuple(range(10)), "b": (0, 1, 2, 3)}
    assert thinned({"a": 10, "b": 4}, 0.2) == {}
