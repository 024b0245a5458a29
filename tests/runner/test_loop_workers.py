"""The loop over workers that end in any order, die and hang: in generations, and without them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optmerge.config.schema import BudgetConfig
from optmerge.errors import RunError, RunFailed, RunInterrupted
from optmerge.records import Evaluation, Record, Trajectory
from optmerge.runner.crew import Crew, Order
from optmerge.runner.executor import InProcess
from tests.runner.executors.scripted import ScriptedWorkers
from tests.runner.quadratic_search import CONFIGS, TARGET, Quadratic, run

OVERLAPPING = ("cma", "optuna", "natural-niches")
Script = Callable[[int, Order], tuple[Any, float]]


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power fails here; thousands of records need not wait for the disk."""
    monkeypatch.setattr("os.fsync", lambda handle: None)


def judged(seed: int, *, mishap: float = 0.0) -> Script:
    """Right evaluations after heavy-tailed times; with a probability of ``mishap`` the worker dies or hangs instead."""
    generator = np.random.default_rng(seed)

    def script(worker: int, order: Order) -> tuple[Any, float]:
        seconds = float(generator.pareto(1.5) + 0.1)
        if generator.random() < mishap:
            return (None if generator.random() < 0.5 else "worker died of signal 9"), seconds
        return order.job.run(Quadratic()), seconds

    return script


def crew(workers: int, script: Script, **settings: Any) -> Crew:
    transport = ScriptedWorkers(script)
    return Crew(transport, workers=workers, clock=transport.clock, **settings)


def records(folder: Path) -> list[Record]:
    return Trajectory.read(folder).records


def trail(folder: Path) -> list[tuple[Any, ...]]:
    """All that is recorded, but for times."""
    return [
        (r.id, r.phase, r.generation, r.value, r.examples, r.error, r.asked, r.vector_sha256, tuple(r.info.items()))
        for r in records(folder)
    ]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("workers", [2, 16])
def test_in_generations_many_workers_give_the_trajectory_of_one(tmp_path: Path, name: str, workers: int) -> None:
    alone = run(tmp_path / "alone", name, InProcess(Quadratic()))
    outcome = run(tmp_path / "many", name, crew(workers, judged(workers)))
    assert trail(tmp_path / "many") == trail(tmp_path / "alone")
    assert outcome.reason == alone.reason
    np.testing.assert_array_equal(outcome.best, alone.best)


@pytest.mark.parametrize(
    "budget",
    [
        BudgetConfig(evaluations=500, patience=6),
        BudgetConfig(evaluations=500, target=0.5),
        BudgetConfig(evaluations=30, select_every=4),
    ],
)
@pytest.mark.parametrize("name", ["adam", "cma"])
def test_what_is_evaluated_before_select_has_spoken_leaves_no_trace(
    tmp_path: Path, name: str, budget: BudgetConfig
) -> None:
    alone = run(tmp_path / "alone", name, InProcess(Quadratic()), budget=budget)
    outcome = run(tmp_path / "many", name, crew(4, judged(0)), budget=budget)
    assert trail(tmp_path / "many") == trail(tmp_path / "alone")
    assert (outcome.reason, outcome.progress.stale) == (alone.reason, alone.progress.stale)
    assert (outcome.best is None) == (alone.best is None)


def test_the_next_generation_does_not_wait_for_the_select_score(tmp_path: Path) -> None:
    def script(worker: int, order: Order) -> tuple[Any, float]:
        return order.job.run(Quadratic()), 5.0 if order.job.split == "select" else 1.0

    transport = ScriptedWorkers(script, start_seconds=0.0)
    run(tmp_path, "adam", Crew(transport, workers=2, clock=transport.clock), budget=BudgetConfig(evaluations=10))
    assert transport.now == pytest.approx(10 * 5.0 + 1.0), "6 seconds a step if it did"


@pytest.mark.parametrize("name", CONFIGS)
def test_mishaps_do_not_change_the_trajectory(tmp_path: Path, name: str) -> None:
    run(tmp_path / "alone", name, InProcess(Quadratic()))
    run(tmp_path / "many", name, crew(4, judged(1, mishap=0.2), timeout=60.0, retries=10))
    assert trail(tmp_path / "many") == trail(tmp_path / "alone")


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_candidate_that_every_worker_loses_is_recorded_as_failed(tmp_path: Path, deterministic: bool) -> None:
    poison: list[bytes] = []

    def script(worker: int, order: Order) -> tuple[Any, float]:
        vector = order.job.candidate.vector.tobytes()
        if len(poison) < 2 and order.job.split == "fit" and vector not in poison and worker == 1:
            poison.append(vector)
        if vector in poison:
            return f"worker {worker} died of signal 9", 0.5
        return order.job.run(Quadratic()), 1.0

    outcome = run(tmp_path, "cma", crew(3, script, retries=2), deterministic=deterministic)
    failed = [record for record in records(tmp_path) if record.error]
    assert len(failed) == 2
    for record in failed:
        assert record.value is None
        assert record.error is not None
        assert record.error.endswith("died of signal 9 (tried 3 times)")
    assert outcome.progress.evaluations == 41


@pytest.mark.parametrize("deterministic", [True, False])
def test_workers_that_never_succeed_end_the_run(tmp_path: Path, deterministic: bool) -> None:
    def script(worker: int, order: Order) -> tuple[Any, float]:
        return Evaluation(math.nan, error="RuntimeError: no such kernel"), 1.0

    with pytest.raises(RunFailed, match=r"3 generations in a row had no finite value.*no such kernel"):
        run(tmp_path, "optuna", crew(4, script), deterministic=deterministic)


class Stopping:
    """Gives a reason to stop once a number of evaluations was begun."""

    def __init__(self, script: Script, limit: int) -> None:
        self.script, self.left = script, limit

    def __call__(self, worker: int, order: Order) -> tuple[Any, float]:
        self.left -= 1
        return self.script(worker, order)

    def stop(self) -> str | None:
        return "asked to" if self.left <= 0 else None


@pytest.mark.parametrize("name", ["adam", "cma"])
@pytest.mark.parametrize("cut", [1, 5, 13, 30])
def test_a_search_of_many_workers_resumes_exactly(
    tmp_path: Path, name: str, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optmerge.runner.loop.SAVE_SECONDS", 0.0)
    run(tmp_path / "alone", name, InProcess(Quadratic()))
    stopping = Stopping(judged(2), cut)
    with pytest.raises(RunInterrupted, match="asked to"):
        run(tmp_path / "many", name, crew(4, stopping), stop=stopping.stop)
    run(tmp_path / "many", name, crew(3, judged(3)))
    assert trail(tmp_path / "many") == trail(tmp_path / "alone")


def check_complete(folder: Path, evaluations: int) -> None:
    """Every candidate is there once, and every select score belongs to one of them."""
    found = records(folder)
    fits = [record for record in found if record.phase == "search"]
    assert len(fits) == evaluations
    assert sorted(record.asked for record in found if record.asked is not None) == list(range(len(found)))
    searched = {record.vector_sha256 for record in fits}
    assert {record.vector_sha256 for record in found if record.phase == "select"} <= searched


@pytest.mark.parametrize("name", OVERLAPPING)
@pytest.mark.parametrize("workers", [1, 3, 16])
def test_without_generations_the_budget_is_exact_and_nothing_is_lost(tmp_path: Path, name: str, workers: int) -> None:
    outcome = run(tmp_path, name, crew(workers, judged(4)), deterministic=False)
    assert outcome.reason == "the budget of 41 evaluations is used up"
    check_complete(tmp_path, 41)
    found = records(tmp_path)
    if workers > 1:
        order = [record.asked for record in found]
        assert order != sorted(order, key=lambda asked: asked or 0), "all ended in the order in which they began"
    best = min((r for r in found if r.phase == "select"), key=lambda record: record.value or 0.0)
    assert outcome.progress.best_record == best.id
    assert best.value is not None
    assert best.value < np.abs(0.3 - TARGET).sum()


@pytest.mark.parametrize("name", OVERLAPPING)
@pytest.mark.parametrize("cut", [1, 6, 20, 44])
def test_without_generations_a_resumed_search_loses_and_doubles_nothing(tmp_path: Path, name: str, cut: int) -> None:
    stopping = Stopping(judged(5, mishap=0.1), cut)
    with pytest.raises(RunInterrupted, match="asked to"):
        run(tmp_path, name, crew(4, stopping, timeout=60.0, retries=9), stop=stopping.stop, deterministic=False)
    before = trail(tmp_path)
    run(tmp_path, name, crew(4, judged(6)), deterministic=False)
    assert trail(tmp_path)[: len(before)] == before
    check_complete(tmp_path, 41)
    again = trail(tmp_path)
    run(tmp_path, name, crew(4, judged(7)), deterministic=False)
    assert trail(tmp_path) == again, "a finished search is only replayed"


@pytest.mark.parametrize("name", OVERLAPPING)
def test_without_generations_a_trajectory_torn_at_any_byte_goes_on(tmp_path: Path, name: str) -> None:
    run(tmp_path / "whole", name, crew(4, judged(8)), deterministic=False)
    lines = (tmp_path / "whole" / "trajectory.jsonl").read_bytes()
    for cut in np.random.default_rng(0).integers(1, len(lines), size=5):
        folder = tmp_path / f"torn{cut}"
        folder.mkdir()
        (folder / "trajectory.jsonl").write_bytes(lines[:cut])
        (folder / "vectors.f64").write_bytes((tmp_path / "whole" / "vectors.f64").read_bytes())
        kept = len(lines[:cut].splitlines()) - 1
        run(folder, name, crew(4, judged(9)), deterministic=False)
        assert trail(folder)[:kept] == trail(tmp_path / "whole")[:kept]
        check_complete(folder, 41)


def test_another_number_of_workers_cannot_replay_what_ended_in_any_order(tmp_path: Path) -> None:
    run(tmp_path, "optuna", crew(16, judged(10)), deterministic=False)
    with pytest.raises(RunError, match="number of workers"):
        run(tmp_path, "optuna", crew(2, judged(10)), deterministic=False)


@pytest.mark.parametrize("name", OVERLAPPING)
def test_without_generations_select_ends_the_search_at_once(tmp_path: Path, name: str) -> None:
    outcome = run(
        tmp_path, name, crew(4, judged(11)), budget=BudgetConfig(evaluations=900, target=0.9), deterministic=False
    )
    assert outcome.reason == "the target 0.9 on select is reached"
    assert records(tmp_path)[-1].id == outcome.progress.best_record


def test_a_driver_of_single_steps_keeps_its_generations(tmp_path: Path) -> None:
    run(tmp_path / "alone", "adam", InProcess(Quadratic()))
    run(tmp_path / "many", "adam", crew(4, judged(12)), deterministic=False)
    assert trail(tmp_path / "many") == trail(tmp_path / "alone")


def test_the_idle_share_counts_what_no_worker_evaluated(tmp_path: Path) -> None:
    alone = run(tmp_path / "alone", "cma", InProcess(Quadratic()))
    assert alone.idle is not None
    assert 0.0 < alone.idle < 1.0
    assert run(tmp_path / "alone", "cma", InProcess(Quadratic())).idle is None, "nothing was evaluated"
