"""The loop with a made-up objective: budgets, failures, selection, and resume after an interruption anywhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from optmerge.config.drivers import OptunaConfig
from optmerge.config.schema import BudgetConfig
from optmerge.drivers.optuna_driver import OptunaDriver
from optmerge.errors import RunError, RunFailed, RunInterrupted
from optmerge.records import Candidate, Evaluation, Record, Trajectory
from optmerge.runner.budget import Progress, StageLimits
from optmerge.runner.executor import InProcess
from optmerge.runner.journal import substitute_failures
from optmerge.runner.loop import Outcome
from optmerge.runner.state import StateStore
from tests.runner.quadratic_search import TARGET, Quadratic, run, variables

NAMES = ("adam", "cma", "optuna")


def comparable(record: Record) -> tuple[Any, ...]:
    return (
        record.id,
        record.phase,
        record.split,
        record.generation,
        record.value,
        record.examples,
        record.error,
        record.vector_sha256,
        None if record.vector is None else record.vector.tolist(),
        None if record.gradient is None else record.gradient.tolist(),
    )


def trail(folder: Path) -> list[tuple[Any, ...]]:
    return [comparable(record) for record in Trajectory.read(folder).records]


@pytest.mark.parametrize("name", NAMES)
def test_the_budget_is_exact_and_the_best_is_chosen_on_select(tmp_path: Path, name: str) -> None:
    outcome = run(tmp_path, name)
    records = Trajectory.read(tmp_path).records
    assert sum(record.split == "fit" for record in records) == 41
    assert outcome.reason == "the budget of 41 evaluations is used up"
    selected = [record for record in records if record.split == "select"]
    best = min(selected, key=lambda record: record.value if record.value is not None else math.inf)
    assert outcome.progress.best_record == best.id
    assert outcome.best is not None
    assert best.vector is not None
    np.testing.assert_array_equal(outcome.best, best.vector)
    assert outcome.progress.best is not None
    assert outcome.progress.best < np.abs(0.3 - TARGET).sum()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("keep_state", [True, False])
def test_resume_from_every_prefix_of_the_trajectory_is_bit_exact(
    tmp_path: Path, name: str, keep_state: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill can leave any whole number of records, and any state at or before them."""
    monkeypatch.setattr("optmerge.runner.loop.SAVE_SECONDS", 0.0)
    whole = tmp_path / "whole"
    run(whole, name)
    expected = trail(whole)
    for cut in [0, 1, 2, 7, 20, 40]:
        folder = tmp_path / f"cut{cut}"
        stopping = _StopAfter(cut)
        with pytest.raises(RunInterrupted):
            run(folder, name, InProcess(stopping), stop=stopping.stop)
        if not keep_state:
            for path in (folder / "state").glob("*"):
                path.unlink()
        run(folder, name)
        assert trail(folder) == expected


@pytest.mark.parametrize("name", NAMES)
def test_resume_from_a_trajectory_torn_at_any_byte_is_bit_exact(tmp_path: Path, name: str) -> None:
    """What SIGKILL leaves: some bytes of both files, the vectors never behind the lines."""
    whole = tmp_path / "whole"
    run(whole, name)
    expected = trail(whole)
    lines = (whole / "trajectory.jsonl").read_bytes()
    for cut in np.random.default_rng(0).integers(1, len(lines), size=6):
        folder = tmp_path / f"torn{cut}"
        folder.mkdir()
        (folder / "trajectory.jsonl").write_bytes(lines[:cut])
        (folder / "vectors.f64").write_bytes((whole / "vectors.f64").read_bytes())
        run(folder, name)
        assert trail(folder) == expected


class _StopAfter(Quadratic):
    def __init__(self, calls: int) -> None:
        super().__init__()
        self.limit = calls

    def stop(self) -> str | None:
        return "asked to" if self.calls >= self.limit else None


def test_a_damaged_state_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr("optmerge.runner.loop.SAVE_SECONDS", 0.0)
    run(tmp_path / "whole")
    stopping = _StopAfter(9)
    with pytest.raises(RunInterrupted):
        run(tmp_path / "cut", "adam", InProcess(stopping), stop=stopping.stop)
    newest = sorted((tmp_path / "cut" / "state").glob("*.state"))[-1]
    newest.write_bytes(newest.read_bytes()[:-20])
    run(tmp_path / "cut")
    assert trail(tmp_path / "cut") == trail(tmp_path / "whole")
    assert "damaged" in caplog.text


def test_a_state_whose_writing_was_killed_is_none(tmp_path: Path) -> None:
    """SIGKILL between the writing of a temporary file and its renaming."""
    store = StateStore(tmp_path / "state")
    left = tmp_path / "state" / ".00000033.state.tmp-8157-6693a271.state"
    left.parent.mkdir()
    left.write_bytes(b"half")
    assert store.load(limit=40) is None
    store.save(7, {"x": 1}, {})
    found = store.load(limit=40)
    assert found is not None
    assert found.cursor == 7
    store.save(8, {"x": 2}, {})
    store.save(9, {"x": 3}, {})
    assert sorted(path.name for path in (tmp_path / "state").glob("*.state")) == ["00000008.state", "00000009.state"]


def test_only_two_states_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optmerge.runner.loop.SAVE_SECONDS", 0.0)
    run(tmp_path)
    assert len(list((tmp_path / "state").iterdir())) == 2


@pytest.mark.parametrize("name", ["cma", "optuna"])
def test_failed_candidates_are_recorded_and_the_search_goes_on(tmp_path: Path, name: str) -> None:
    outcome = run(tmp_path, name, InProcess(Quadratic(fail=lambda n: n % 4 == 2)))
    records = Trajectory.read(tmp_path).records
    failed = [record for record in records if record.error]
    assert failed
    assert all(record.value is None and record.error == "RuntimeError: made to fail" for record in failed)
    assert outcome.progress.evaluations == 41
    assert outcome.progress.best is not None


def test_three_generations_without_a_value_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"3 generations in a row had no finite value.*made to fail"):
        run(tmp_path, "adam", InProcess(Quadratic(fail=lambda n: n > 4)))
    assert sum(record.error is not None for record in Trajectory.read(tmp_path).records) == 3


def test_two_bad_generations_do_not(tmp_path: Path) -> None:
    outcome = run(tmp_path, "adam", InProcess(Quadratic(fail=lambda n: n in (5, 6, 9))))
    assert outcome.progress.evaluations == 41


def test_target_and_patience(tmp_path: Path) -> None:
    outcome = run(tmp_path / "target", budget=BudgetConfig(evaluations=500, target=0.5))
    assert outcome.reason == "the target 0.5 on select is reached"
    assert outcome.progress.evaluations < 500
    outcome = run(tmp_path / "patience", budget=BudgetConfig(evaluations=500, patience=6))
    assert outcome.reason == "no improvement on select in 6 scores"
    assert outcome.progress.stale == 6


def test_minutes_are_checked_between_evaluations(tmp_path: Path) -> None:
    outcome = run(tmp_path, budget=BudgetConfig(evaluations=10**6, minutes=0.005))
    assert "minutes is used up" in outcome.reason
    assert outcome.best is not None


def test_select_every(tmp_path: Path) -> None:
    run(tmp_path, budget=BudgetConfig(evaluations=10, select_every=4))
    generations = [record.generation for record in Trajectory.read(tmp_path).records if record.split == "select"]
    assert generations == [0, 4, 8, 9]  # every fourth, and the last


def test_another_search_in_the_trajectory_is_refused(tmp_path: Path) -> None:
    stopping = _StopAfter(5)
    with pytest.raises(RunInterrupted):
        run(tmp_path, "adam", InProcess(stopping), stop=stopping.stop)
    with pytest.raises(RunError, match=r"settings, seed or libraries have changed"):
        run(tmp_path, "cma")


def test_failures_are_told_as_the_worst_finite_value() -> None:
    def values(evaluations: Sequence[Evaluation]) -> list[float] | None:
        told = substitute_failures(evaluations)
        return None if told is None else [evaluation.value for evaluation in told]

    bad = Evaluation(math.nan, error="x")
    assert values([Evaluation(1.0), bad, Evaluation(3.0)]) == [1.0, 3.0, 3.0]
    assert values([bad, bad]) is None


class Sharing(OptunaDriver):
    """A driver whose every second generation is empty, as others work on all that is left; remembers its replay."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.asked, self.recalled = 0, 0

    def recall(self, record: Record) -> None:
        assert record.phase == "search"
        self.recalled += 1

    def ask(self) -> list[Candidate]:
        self.asked += 1
        return [] if self.asked % 2 else super().ask()


def shared(folder: Path, stop: Callable[[], str | None]) -> tuple[Sharing, Callable[[], Outcome]]:
    driver = Sharing(OptunaConfig(startup=3), variables(), seed=np.random.SeedSequence(5), fit_sizes={}, budget=6)
    return driver, partial(run, folder, driver, budget=BudgetConfig(evaluations=6), stop=stop)


def test_an_empty_generation_is_waited_for_and_can_be_interrupted(tmp_path: Path) -> None:
    driver, search = shared(tmp_path / "waiting", lambda: None)
    assert search().progress.evaluations == 6
    assert driver.asked == 12
    records = Trajectory.read(tmp_path / "waiting").records
    assert [record.generation for record in records if record.phase == "search"] == list(range(6))
    _, search = shared(tmp_path / "stopped", lambda: "asked to")
    with pytest.raises(RunInterrupted, match="asked to"):
        search()
    assert Trajectory.read(tmp_path / "stopped").records == []


def test_a_driver_is_told_which_records_are_replayed(tmp_path: Path) -> None:
    _, search = shared(tmp_path, lambda: None)
    search()
    for path in (tmp_path / "state").glob("*"):
        path.unlink()
    driver, search = shared(tmp_path, lambda: None)
    search()
    assert driver.recalled == driver.asked == 12


def test_a_search_that_the_clock_ended_within_a_generation_is_replayed_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(10**6))
    monkeypatch.setattr("optmerge.runner.journal.time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    budget = BudgetConfig(evaluations=500, minutes=12.5 / 60)
    outcome = run(tmp_path, "cma", budget=budget)
    expected = trail(tmp_path)
    last = [record.generation for record in Trajectory.read(tmp_path).records if record.phase == "search"]
    assert 0 < last.count(last[-1]) < last.count(0), "some of a generation"
    for path in (tmp_path / "state").glob("*"):
        path.unlink()
    again = run(tmp_path, "cma", budget=budget)
    assert trail(tmp_path) == expected
    assert (again.reason, again.progress) == (outcome.reason, outcome.progress)


class Ending(OptunaDriver):
    """A driver that stops by itself after six trials."""

    def stop(self) -> dict[str, str]:
        return {"six": "trials"} if self.generation == 6 else {}


def test_the_last_generation_is_scored_though_the_driver_stops_by_itself(tmp_path: Path) -> None:
    def search() -> Outcome:
        driver = Ending(OptunaConfig(startup=3), variables(), seed=np.random.SeedSequence(5), fit_sizes={}, budget=41)
        return run(tmp_path, driver, budget=BudgetConfig(evaluations=41, select_every=4))

    outcome = search()
    assert outcome.reason == "optuna stopped by itself: six trials"
    expected = trail(tmp_path)
    assert [one[3] for one in expected if one[1] == "select"] == [0, 4, 5]
    assert search().progress == outcome.progress
    for path in (tmp_path / "state").glob("*"):
        path.unlink()
    assert search().progress == outcome.progress
    assert trail(tmp_path) == expected


def test_the_start_of_a_stage_does_not_use_up_its_patience(tmp_path: Path) -> None:
    best = float(np.abs(0.3 - TARGET).sum())
    outcome = run(
        tmp_path,
        "adam",
        budget=BudgetConfig(evaluations=6),
        limits=StageLimits(patience=1),
        before=Progress(best=best, best_record=1),
    )
    assert outcome.progress.evaluations > 1
    assert outcome.progress.best is not None
    assert outcome.progress.best < best
