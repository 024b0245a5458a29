"""Where a search stands, kept up record by record: what the terminal shows, and the events of ``--json``.

standing = Standing()
standing.begin(RunView.open(run, vectors=False))       # what an interrupted run has done already
news = standing.take(record)
standing.line()            # "evaluations 12/60 | best select 0.351 | ... | about 4 min 10 s left"
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from optmerge.records import EvaluationCount, Record
from optmerge.runner.alarms import COLLAPSE, by_task
from optmerge.tracking.markdown import number
from optmerge.tracking.view import RunView

_RECENT = 20  # evaluations that the rate is measured over


@dataclass(frozen=True)
class Score:
    """One score on select.

    Attributes:
        name: A baseline's name; "" for an iterate of the search.
        value: The objective.
        evaluations: How many had been made.
        tasks: Task -> its part of the objective.
        agreement: Task -> share of examples where it agrees with the expert, where that is measured.
    """

    name: str
    value: float
    evaluations: int = 0
    tasks: Mapping[str, float] = field(default_factory=dict)
    agreement: Mapping[str, float] = field(default_factory=dict)


class Standing:
    """The state of a run.

    Attributes:
        evaluations: Made on fit, of the budget.
        best: The best iterate on select, of those that may be.
        baseline: The best baseline on select.
        value: The latest value on all fit examples.
        failed: Evaluations of the search that gave no value.
        alarms: Kind -> sentence.
        stage: Of the schedule, from 0.
        elapsed: Seconds of work since the run began.
    """

    def __init__(self) -> None:
        self.name = ""
        self.driver = ""
        self.limit: int | None = None
        self.minutes: float | None = None
        self.evaluations = 0
        self.best: Score | None = None
        self.baseline: Score | None = None
        self.value: float | None = None
        self.failed = 0
        self.alarms: dict[str, str] = {}
        self.stage = 0
        self.elapsed = 0.0
        self._collapsed = False  # whether an iterate that has collapsed may be the best
        self._begun: float | None = None
        self._count = EvaluationCount()
        self._ticks: deque[tuple[float, float]] = deque(maxlen=_RECENT)  # evaluations made, and when

    def begin(self, view: RunView) -> None:
        """Take over a run's limits, and what it has done already."""
        self.name, self.driver = view.name, view.driver
        self.limit, self.minutes = view.budget.get("evaluations"), view.budget.get("minutes")
        self._collapsed = view.collapsed
        for record in view.records:
            self.take(record)
        self._ticks.clear()

    def take(self, record: Record) -> bool:
        """Note a record; whether it is news (a new best, a failure)."""
        self.elapsed = record.elapsed
        for kind, sentence in record.alarms.items():
            self.alarms.setdefault(kind, sentence)
        if record.error is not None:
            self.failed += record.phase == "search"
        if record.stage > self.stage:
            self.stage = record.stage
            if record.phase == "baseline":  # of another objective: values before cannot be compared
                self.baseline = self.best = None
        if record.phase == "baseline":
            if record.split == "select" and record.value is not None and record.name:
                self.baseline = min(self.baseline or _score(record, 0), _score(record, 0), key=lambda each: each.value)
            self._begun = self._begun if record.stage else record.elapsed
            return False
        if record.phase == "search":
            self.evaluations = self._count(record)
            self._ticks.append((self._count.made, record.elapsed))
            if record.value is not None and record.share == 1.0:
                self.value = record.value
            return record.error is not None
        if record.phase != "select" or record.value is None or (COLLAPSE in record.alarms and not self._collapsed):
            return False
        better = self.best is None or record.value < self.best.value
        if better:
            self.best = _score(record, self.evaluations)
        return better

    @property
    def rate(self) -> float | None:
        """Evaluations a second, lately."""
        if len(self._ticks) < 2:
            return None
        (before, begun), (made, now) = self._ticks[0], self._ticks[-1]
        return (made - before) / (now - begun) if made > before and now > begun else None

    @property
    def seconds_left(self) -> float | None:
        """Until the first limit of the budget, as it looks now."""
        limits: list[float] = []
        if self.limit and self.rate:
            limits.append((self.limit - self.evaluations) / self.rate)
        if self.minutes and self._begun is not None:
            limits.append(self.minutes * 60 - (self.elapsed - self._begun))
        return max(0.0, min(limits)) if limits else None

    @property
    def pace(self) -> str:
        """The rate for people; empty while there is none."""
        rate = self.rate
        return "" if rate is None else f"{rate:.2f}/s" if rate >= 1 else f"{1 / rate:.1f} s each"

    def line(self) -> str:
        """Where the search stands, in one line."""
        done = f"{self.evaluations}/{self.limit}" if self.limit else str(self.evaluations)
        parts = [f"evaluations {done}"]
        if self.stage:
            parts.append(f"stage {self.stage + 1}")
        if self.best is not None:
            parts.append(f"best select {number(self.best.value)}")
        if self.value is not None:
            parts.append(f"fit {number(self.value)}")
        if self.baseline is not None:
            parts.append(f"best baseline {number(self.baseline.value)} ({self.baseline.name})")
        if self.pace:
            parts.append(self.pace)
        if self.seconds_left is not None:
            parts.append(f"about {duration(self.seconds_left)} left")
        if self.failed:
            parts.append(f"{self.failed} FAILED")
        parts += [f"ALARM {kind}" for kind in self.alarms]
        return " | ".join(parts)


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(42), duration(754), duration(7380)
    ('42 s', '12 min 34 s', '2 h 03 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _score(record: Record, evaluations: int) -> Score:
    value = math.inf if record.value is None else record.value
    return Score(record.name or "", value, evaluations, record.per_task, by_task(record.signals, "agreement"))
