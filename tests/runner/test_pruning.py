"""Rungs in the loop and in whole searches: exact budgets, no rung on select, marks, and exact resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optmerge.config.drivers import OptunaConfig
from optmerge.config.load import build_config
from optmerge.config.schema import BudgetConfig
from optmerge.drivers import Variables, make_driver
from optmerge.errors import RunInterrupted
from optmerge.records import OBJECTIVE, Candidate, Evaluation, EvaluationCount, Record, Trajectory, Vector
from optmerge.runner.budget import Progress, next_stage
from optmerge.runner.executor import InProcess
from optmerge.runner.journal import Journal
from optmerge.runner.loop import Outcome, run_loop
from optmerge.runner.search import Run, resume, search
from optmerge.runner.state import StateStore
from optmerge.tracking.view import RunView
from tests.zoo import facts

Settings = Callable[..., dict[str, Any]]
SIZES = {"a": 10, "b": 7}
WHOLE = 17
DRIVERS = {
    "wilcoxon": {"name": "optuna", "startup": 3, "pruner": "wilcoxon", "rungs": 2},
    "halving": {"name": "optuna", "startup": 3, "pruner": "successive-halving", "reduction": 2},
}


class Judged:
    """The examples of a task cost alike but for a ripple; remembers what was scored on select."""

    def __init__(self) -> None:
        self.selected: list[bytes] = []

    def fit(self, candidate: Candidate) -> Evaluation:
        base = float(((candidate.vector - 0.3) ** 2).sum())
        looked = candidate.examples or {task: tuple(range(size)) for task, size in SIZES.items()}
        costs = {task: {OBJECTIVE: base + 0.01 * np.cos(np.array(at))} for task, at in looked.items()}
        return Evaluation(float(np.mean([one[OBJECTIVE].mean() for one in costs.values()])), per_example=costs)

    def select(self, vector: Vector) -> Evaluation:
        self.selected.append(vector.tobytes())
        return Evaluation(float(((vector - 0.3) ** 2).sum()))


def loop(folder: Path, name: str, judge: Judged, *, evaluations: int, stop_after: int = 10**6) -> Outcome:
    variables = Variables(tuple("xyz"), np.full(3, -1.0), np.full(3, 1.0), np.full(3, -0.5))
    driver = make_driver(
        OptunaConfig.model_validate(DRIVERS[name]),
        variables,
        seed=np.random.SeedSequence(1),
        fit_sizes=SIZES,
        budget=evaluations,
    )
    trajectory = Trajectory.open(folder)
    calls = iter(range(10**6))
    try:
        return run_loop(
            driver,
            InProcess(judge),
            Journal(trajectory),
            BudgetConfig(evaluations=evaluations),
            StateStore(folder / "state"),
            stop=lambda: "asked to" if next(calls) >= stop_after else None,
        )
    finally:
        trajectory.close()


def searched(folder: Path) -> list[Record]:
    return [record for record in Trajectory.read(folder).records if record.phase == "search"]


@pytest.mark.parametrize("name", DRIVERS)
def test_rungs_count_as_their_share_and_never_reach_select(tmp_path: Path, name: str) -> None:
    judge = Judged()
    outcome = loop(tmp_path, name, judge, evaluations=12)
    records = searched(tmp_path)
    looked = [round(record.share * WHOLE) for record in records]
    assert all(
        record.share * WHOLE == pytest.approx(examples) for record, examples in zip(records, looked, strict=True)
    )
    assert sum(looked) <= 12 * WHOLE < sum(looked) + WHOLE, "nothing over the budget, and less than one left"
    assert outcome.progress.evaluations == sum(looked) // WHOLE
    assert outcome.progress.part == sum(looked) % WHOLE
    assert len(records) > 12
    whole = [record.vector_sha256 for record in records if record.share == 1.0]
    assert {record.examples == "all" for record in records if record.share == 1.0} == {True}
    scored = [record for record in Trajectory.read(tmp_path).records if record.phase == "select"]
    assert [record.vector_sha256 for record in scored] == whole, "every whole evaluation, and nothing else"
    dropped = {record.vector_sha256 for record in records if record.pruned}
    assert dropped
    assert not dropped & set(whole)
    assert all(record.share < 1.0 for record in records if record.pruned)
    assert [record.generation for record in scored] == list(range(len(scored))), "a generation is a trial that went on"
    count = EvaluationCount()
    assert [count(record) for record in records][-1] == outcome.progress.evaluations


@pytest.mark.parametrize("name", DRIVERS)
@pytest.mark.parametrize("keep_state", [True, False])
def test_resume_from_anywhere_is_bit_exact(
    tmp_path: Path, name: str, keep_state: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optmerge.runner.loop.SAVE_SECONDS", 0.0)
    loop(tmp_path / "whole", name, Judged(), evaluations=9)
    expected = [(r.phase, r.vector_sha256, r.value, r.examples, r.share, r.pruned) for r in read(tmp_path / "whole")]
    for cut in range(0, len(expected), 4):
        folder = tmp_path / f"cut{cut}"
        with pytest.raises(RunInterrupted):
            loop(folder, name, Judged(), evaluations=9, stop_after=min(cut, len(searched(tmp_path / "whole")) - 1))
        if not keep_state:
            for path in (folder / "state").glob("*"):
                path.unlink()
        loop(folder, name, Judged(), evaluations=9)
        assert [(r.phase, r.vector_sha256, r.value, r.examples, r.share, r.pruned) for r in read(folder)] == expected


def test_what_rungs_have_begun_counts_as_one_when_a_stage_ends() -> None:
    count = EvaluationCount()
    shares = ((0, 0.25), (0, 1.0), (1, 0.25), (1, 0.75))
    made = [count(Record(0, "search", "optuna", "fit", 1.0, stage=stage, share=share)) for stage, share in shares]
    assert made == [0, 1, 2, 3]
    ended = next_stage(Progress(evaluations=1, part=4), comparable=True)
    assert (ended.evaluations, ended.part) == (2, 0), "as the budget counts"


def read(folder: Path) -> list[Record]:
    return Trajectory.read(folder).records


def run(settings: dict[str, Any], root: Path, **options: Any) -> Run:
    return search(build_config(settings, root=root), root=root, **options)


@pytest.mark.parametrize("name", DRIVERS)
def test_a_search_with_a_pruner_resumes_exactly_and_says_what_it_dropped(
    settings: Settings, tmp_path: Path, name: str
) -> None:
    made = settings(driver=DRIVERS[name], budget={"evaluations": 7}, alarms={"collapse": "warn"})
    whole = run(made, tmp_path / "whole")
    records = searched(whole.folder)
    assert any(record.pruned for record in records)
    assert whole.result["evaluations"] in (6, 7)
    assert {record.share for record in records if record.vector_sha256 == records[0].vector_sha256} >= {1.0}
    if name == "wilcoxon":
        for record in records:
            assert record.costs is not None
            for task, costs in record.costs.items():
                assert len(costs) == round(24 * record.share)
                assert costs.mean() == pytest.approx(record.per_task[task], rel=1e-6)
    view = RunView.open(whole.folder)
    assert view.pruned == sum(record.pruned for record in records)
    assert view.evaluations == whole.result["evaluations"]
    assert len(view.fit) == sum(record.share == 1.0 for record in records)
    asked = iter(range(10**6))
    with pytest.raises(RunInterrupted):
        run(made, tmp_path / "cut", stop=lambda: "asked to" if next(asked) >= 11 else None)
    again = resume(tmp_path / "cut" / "run")
    assert facts(again.folder) == facts(whole.folder)
    for ours, theirs in zip(searched(again.folder), records, strict=True):
        assert (ours.share, ours.pruned) == (theirs.share, theirs.pruned)
