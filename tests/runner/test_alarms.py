"""Alarms: what raises one and what does not, what the loop does about it, and resume in the middle of it."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optmerge.config.alarms import AlarmsConfig
from optmerge.config.drivers import AdamConfig, CmaConfig
from optmerge.config.schema import BudgetConfig
from optmerge.drivers import Variables, make_driver
from optmerge.errors import RunInterrupted
from optmerge.records import Candidate, Evaluation, Record, Trajectory, Vector
from optmerge.runner.alarms import Alarms, RaisedAlarm, by_task, raised_alarms
from optmerge.runner.executor import InProcess
from optmerge.runner.journal import Journal
from optmerge.runner.loop import Outcome, run_loop
from optmerge.runner.state import StateStore


def signals(top: float = 0.3, agreement: float = 0.8, entropy: float = 0.9, **more: float) -> dict[str, float]:
    """Of one task whose expert predicts its classes evenly."""
    named = {"top-share": top, "agreement": agreement, "marginal-entropy": entropy}
    expert = {"expert-top-share/a": 0.3, "expert-marginal-entropy/a": 0.95}
    return {f"{name}/a": value for name, value in named.items()} | expert | more


def record(
    *, phase: Any = "select", value: float = 0.5, norm: float | None = None, examples: str = "all", **values: float
) -> Record:
    split = "fit" if phase == "search" else "select"
    return Record(0, phase, "adam", split, value, signals=signals(**values), gradient_norm=norm, examples=examples)


STEP = Record(0, "search", "adam", "fit", 0.5, gradient_norm=1.0, examples="0123")  # along a gradient, with no signals


def see(*records: Record, **settings: Any) -> dict[str, str]:
    """What the last record raises."""
    alarms = Alarms(AlarmsConfig(**settings))
    found: dict[str, str] = {}
    for one in (STEP, *records):
        found = alarms.see(one)
    return found


COLLAPSES = {
    "one class": {"top": 0.6, "agreement": 0.6},
    "few classes": {"entropy": 0.4, "agreement": 0.7},
    "wholly": {"top": 1.0, "agreement": 0.3, "entropy": 0.0},
}
HEALTHY = {
    "better": {"top": 0.35, "agreement": 0.9},
    "worse, as spread": {"top": 0.35, "agreement": 0.65},
    "one class more often, and right": {"top": 0.6, "agreement": 0.8},
    "one class more often, hardly worse": {"top": 0.6, "agreement": 0.73},
    "fewer classes, and right": {"entropy": 0.3, "agreement": 0.85},
    "fewer classes, hardly worse": {"entropy": 0.3, "agreement": 0.73},
}


@pytest.mark.parametrize("name", COLLAPSES)
def test_a_collapse_is_told_in_a_sentence_with_task_numbers_and_remedy(name: str) -> None:
    (sentence,) = see(record(), record(**COLLAPSES[name])).values()
    assert sentence.startswith("task a collapses on select: ")
    assert "(at the start: 80%)" in sentence
    assert f"{COLLAPSES[name]['agreement']:.0%}" in sentence
    assert "smaller steps" in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("name", HEALTHY)
def test_what_is_no_collapse(name: str) -> None:
    assert see(record(), record(**HEALTHY[name])) == {}


def test_a_task_that_leaves_its_expert_with_all_its_variety_is_told_once_and_ends_nothing() -> None:
    alarms = Alarms(AlarmsConfig())
    far = record(agreement=0.5)
    fit = replace(far, phase="search", split="fit", gradient_norm=1.0)
    found = [alarms.see(one) for one in (STEP, record(), fit, far, far)]
    assert [set(one) for one in found] == [set(), set(), set(), {"drift"}, set()]
    assert "task a goes away from its expert on select: 50% of its predictions" in found[3]["drift"]
    assert "(at the start: 80%)" in found[3]["drift"]
    assert see(record(), far, drift=0.5) == {}
    assert set(see(record(), record(**COLLAPSES["wholly"]))) == {"collapse"}


def test_a_start_that_predicts_one_class_only_is_no_collapse() -> None:
    """A base model under an expert's head does that; the search is about to mend it."""
    start = {"top": 1.0, "agreement": 0.3, "entropy": 0.0}
    assert see(record(**start)) == {}
    assert see(record(**start), record(top=1.0, agreement=0.29, entropy=0.0)) == {}
    assert "collapse" in see(record(**start), record(top=1.0, agreement=0.2, entropy=0.0))


def test_every_collapsed_iterate_is_told_and_the_worst_task_is_named() -> None:
    alarms = Alarms(AlarmsConfig())
    other = {key.replace("/a", "/b"): value for key, value in signals().items()}
    gone = {key.replace("/a", "/b"): value for key, value in signals(1.0, 0.1, 0.0).items()}
    for one in (STEP, record(**other)):
        alarms.see(one)
    for _ in range(2):
        assert alarms.see(record(top=0.55, agreement=0.6, **gone))["collapse"].startswith("task b collapses")


def test_thresholds_are_settings() -> None:
    one_class, few = (record(**COLLAPSES[name]) for name in ("one class", "few classes"))
    assert see(record(), one_class, top_share=0.35, drift=0) == {}
    assert see(record(), one_class, agreement=0.6, drift=0) == {}
    assert see(record(), few, marginal_entropy=0.4) == {}


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({"phase": "search", "norm": 1.0}, True),
        ({"phase": "search", "norm": 1.0, "examples": "0123"}, False),
        ({"phase": "search"}, False),
        ({"phase": "baseline"}, False),
        ({"phase": "report"}, False),
    ],
    ids=["gradient step", "mini-batch", "one of a population", "baseline", "report"],
)
def test_only_iterates_count(options: dict[str, Any], seen: bool) -> None:
    assert ("collapse" in see(record(**options), record(**options, **COLLAPSES["wholly"]))) is seen


def test_what_explores_counts_only_where_it_would_win() -> None:
    """A candidate that has collapsed and scores worse is one of many; one that scores better games the objective."""
    gone = COLLAPSES["wholly"]
    alarms = Alarms(AlarmsConfig())
    records = [record(phase="search"), record(value=0.5), record(value=0.6, **gone), record(value=0.4, **gone)]
    assert [set(alarms.see(one)) for one in records] == [set(), set(), set(), {"collapse"}]
    assert set(alarms.see(record(value=0.45, **gone))) == {"collapse"}  # the best has not moved


def test_splits_are_compared_with_their_own_start() -> None:
    first = record(phase="search", norm=1.0, agreement=0.95)
    assert see(first, record(agreement=0.7), record(top=0.6, agreement=0.65)) == {}


def test_a_gradient_that_explodes_warns_once() -> None:
    alarms = Alarms(AlarmsConfig())
    found = [alarms.see(record(phase="search", norm=norm)) for norm in (0.1, 1.0, 0.2, 0.3, 0.1, 9.9, 10.1, 50.0)]
    assert [set(one) for one in found] == [set()] * 6 + [{"gradient"}, set()]
    assert "10.1" in found[6]["gradient"]
    assert "at most 1 in the first 5" in found[6]["gradient"]


def test_variables_at_their_bounds_warn_once_unless_they_began_there() -> None:
    alarms = Alarms(AlarmsConfig())
    alarms.see(STEP)
    shares = (0.0, 0.5, 0.9, 1.0)
    found = [alarms.see(record(**{"at-bound": share})) for share in shares]
    assert [set(one) for one in found] == [set(), set(), {"at-bound"}, set()]
    assert "90% of the variables" in found[2]["at-bound"]
    assert see(record(**{"at-bound": 1.0}), record(**{"at-bound": 1.0})) == {}


def test_records_without_signals_raise_nothing() -> None:
    """Those of earlier versions, and what failed."""
    plain = Record(0, "select", "adam", "select", 0.5)
    assert see(plain, plain) == {}
    failed = Record(0, "select", "adam", "select", None, error="out of memory")
    assert see(record(), failed) == {}


def test_alarms_of_a_trajectory_each_kind_once() -> None:
    told = [{}, {"gradient": "g"}, {"collapse": "first"}, {"collapse": "second"}]
    records = [replace(STEP, id=number, alarms=alarms) for number, alarms in enumerate(told)]
    assert raised_alarms(records) == (RaisedAlarm("gradient", "g", 2, 1, 1), RaisedAlarm("collapse", "first", 3, 2, 2))


def test_signals_by_task() -> None:
    assert by_task({"agreement/a/b": 0.5, "at-bound": 1.0, "top-share/c": 0.1}, "agreement") == {"a/b": 0.5}


class Cliff:
    """An objective that falls for ever along the first variable; beyond 0.5 the model has collapsed."""

    def _signals(self, vector: Vector) -> dict[str, float]:
        return signals(**COLLAPSES["wholly"]) if vector[0] > 0.5 else signals(agreement=0.8 - 0.01 * float(vector[0]))

    def fit(self, candidate: Candidate) -> Evaluation:
        gradient = np.array([-1.0, 0.0]) if "gradient" in candidate.needs else None
        return Evaluation(-float(candidate.vector[0]), gradient=gradient, signals=self._signals(candidate.vector))

    def select(self, vector: Vector) -> Evaluation:
        return Evaluation(-float(vector[0]), signals=self._signals(vector))


DRIVERS = {"adam": AdamConfig(lr=0.11), "cma": CmaConfig(sigma=0.3)}


def run(folder: Path, collapse: Any, *, driver: str = "adam", stop: Any = lambda: None) -> Outcome:
    trajectory = Trajectory.open(folder)
    made = make_driver(
        DRIVERS[driver],
        Variables(("x", "y"), np.zeros(2), np.ones(2), np.array([0.1, 0.5])),
        seed=np.random.SeedSequence(0),
        fit_sizes={},
        budget=12,
    )
    journal = Journal(trajectory, alarms=Alarms(AlarmsConfig(collapse=collapse)))
    store = StateStore(folder / "state")
    try:
        return run_loop(
            made,
            InProcess(Cliff()),
            journal,
            BudgetConfig(evaluations=40 if driver == "cma" else 12),
            store,
            stop=stop,
            collapse=collapse,
        )
    finally:
        trajectory.close()


def firsts(folder: Path) -> list[float]:
    """The first variable of every fit evaluation."""
    return [float(r.vector[0]) for r in Trajectory.read(folder).records if r.phase == "search" and r.vector is not None]


def test_stop_ends_the_search_and_keeps_the_best_iterate(tmp_path: Path) -> None:
    outcome = run(tmp_path, "stop")
    assert outcome.reason.startswith("task a collapses on fit: 100% of its predictions are one class")
    assert outcome.best is not None
    assert outcome.best[0] == pytest.approx(0.43)
    assert firsts(tmp_path) == pytest.approx([0.1, 0.21, 0.32, 0.43, 0.54])
    last = Trajectory.read(tmp_path).records[-1]
    assert last.alarms == {"collapse": outcome.reason}


def test_warn_goes_on_and_lets_the_lowest_value_win(tmp_path: Path) -> None:
    outcome = run(tmp_path, "warn")
    assert outcome.reason == "the budget of 12 evaluations is used up"
    assert outcome.best is not None
    assert outcome.best[0] == 1.0
    assert sum(bool(r.alarms) for r in Trajectory.read(tmp_path).records) > 5


def test_restore_goes_back_once_with_a_smaller_step(tmp_path: Path) -> None:
    outcome = run(tmp_path, "restore")
    visited = firsts(tmp_path)
    assert visited[4:8] == pytest.approx([0.54, 0.43, 0.441, 0.452])
    assert outcome.reason.startswith("task a collapses") or outcome.reason.endswith("used up")
    assert outcome.best is not None
    assert 0.43 < outcome.best[0] <= 0.5
    assert outcome.progress.restored


def test_a_population_stops_where_its_best_has_collapsed(tmp_path: Path) -> None:
    """Candidates that only explore raise nothing, and `restore` is for drivers that follow a gradient."""
    outcome = run(tmp_path, "restore", driver="cma")
    records = Trajectory.read(tmp_path).records
    assert outcome.reason.startswith("task a collapses on select")
    assert [r.phase for r in records if r.alarms] == ["select"]
    assert sum(r.phase == "search" and r.value is not None and r.value < -0.5 for r in records) >= 1
    assert outcome.best is None or outcome.best[0] <= 0.5


@pytest.mark.parametrize("collapse", ["stop", "restore", "warn"])
@pytest.mark.parametrize("keep_state", [True, False])
def test_resume_anywhere_around_an_alarm_is_bit_exact(
    tmp_path: Path, collapse: str, keep_state: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optmerge.runner.loop.SAVE_SECONDS", 0.0)

    def facts(folder: Path) -> list[Any]:
        records = Trajectory.read(folder).records
        return [
            (r.id, r.phase, r.value, r.vector_sha256, dict(r.signals), dict(r.alarms), dict(r.info)) for r in records
        ]

    whole = run(tmp_path / "whole", collapse)
    for cut in range(13):
        folder, left = tmp_path / str(cut), iter(range(100))
        with contextlib.suppress(RunInterrupted):  # the last cuts lie behind the end
            run(folder, collapse, stop=lambda: "asked to" if next(left) >= cut else None)  # noqa: B023
        if not keep_state:
            for path in (folder / "state").glob("*"):
                path.unlink()
        again = run(folder, collapse)
        assert facts(folder) == facts(tmp_path / "whole")
        assert again.reason == whole.reason
        assert again.best is not None
        assert np.array_equal(again.best, whole.best)
