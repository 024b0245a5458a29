"""Alarms: what a search's recorded signals say is going wrong, each in one sentence.

    alarms = Alarms(config.alarms)
    found = alarms.see(record)        # {"collapse": "Task topic collapses: ..."}; {} for nearly every record

An objective can fall while the model stops telling inputs apart: entropy is lowest where every input gets the same
class. So each iterate is compared, task by task, with the expert and with the search's own start, none of which needs
a label. It is called collapsed where its agreement with the expert is below ``agreement`` times the start's, and

- its most frequent class has a share of the predictions that exceeds the expert's by ``top_share``; or
- its marginal entropy is below ``marginal_entropy`` times the expert's, where the start's was not.

A task whose agreement falls below ``drift`` times the start's without either has drifted: that is told, and ends
nothing, because a language model's predictions can go wrong and stay as varied.

Everything is a function of the records in their order, so a resumed search raises what an uninterrupted one would.
What counts is where a search goes: every step along a gradient (of a mini-batch only on select, because a few examples
have no marginal); of drivers that explore, only what would be the best on select so far.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from optmerge.config.alarms import AlarmsConfig
from optmerge.records import EvaluationCount, Record

COLLAPSE, DRIFT, GRADIENT, BOUNDS = "collapse", "drift", "gradient", "at-bound"
_REMEDY = "take smaller steps, or an objective that looks at the expert (expert-kl, entropy-guarded)"
FIRST = 5  # gradients whose largest norm later ones are compared with


class Alarms:
    """Sees every record once, in order."""

    def __init__(self, config: AlarmsConfig) -> None:
        self.config = config
        self._first: str | None = None  # hash of the search's first vector
        self._starts: dict[str, Mapping[str, float]] = {}  # split -> its signals there
        self._follows = False  # a gradient
        self._best = math.inf  # on select, of what has not collapsed
        self._norms: list[float] = []
        self._said: set[str] = set()
        self._stage = 0

    def see(self, record: Record) -> dict[str, str]:
        """Kind of alarm -> sentence.

        ``collapse`` is given for every iterate that shows it, the others once in a search.
        """
        if record.stage != self._stage and record.phase != "report":
            self._stage, self._follows, self._norms = record.stage, False, []
            if record.phase == "baseline":  # scored again: the stage has an objective of its own
                self._best = math.inf
        if record.phase not in ("search", "select") or record.error is not None:
            return {}
        if record.phase == "search":
            self._follows = record.gradient_norm is not None
        start = self._start(record)
        found: dict[str, str] = {}
        if record.signals and self._counts(record):
            found |= self._collapse(record, start) or self._drift(record, start)
            found |= self._bounds(record, start)
        if record.phase == "select" and COLLAPSE not in found and record.value is not None:
            self._best = min(self._best, record.value)
        if record.gradient_norm is not None:
            found |= self._gradient(record)
        return found

    def _start(self, record: Record) -> Mapping[str, float]:
        """The start's signals on the record's split, or on another where it was not scored there (of a population)."""
        if not self._starts:
            self._first = record.vector_sha256
        if record.signals and record.vector_sha256 == self._first:
            self._starts.setdefault(record.split, record.signals)
        return self._starts.get(record.split) or next(iter(self._starts.values()), {})

    def _counts(self, record: Record) -> bool:
        """Whether the search goes where the record was made."""
        if record.phase == "search":
            return self._follows and record.examples == "all"
        return self._follows or (record.value is not None and record.value < self._best)

    def _collapse(self, record: Record, start: Mapping[str, float]) -> dict[str, str]:
        """The sentence about the collapsed task whose agreement fell the most."""
        worst: tuple[float, str] | None = None
        for task, agreement in by_task(record.signals, "agreement").items():
            before = start.get(f"agreement/{task}", math.nan)
            if not agreement < self.config.agreement * before:
                continue
            shown = self._one_class(record, task) or self._few_classes(record, start, task)
            if shown and (worst is None or agreement / before < worst[0]):
                told = (
                    f"task {task} collapses on {record.split}: {shown}, and {agreement:.0%} of its predictions are "
                    f"the expert's (at the start: {before:.0%}); {_REMEDY}"
                )
                worst = (agreement / before, told)
        return {} if worst is None else {COLLAPSE: worst[1]}

    def _drift(self, record: Record, start: Mapping[str, float]) -> dict[str, str]:
        """The sentence about the task that went furthest from its expert, whatever its variety of classes."""
        if DRIFT in self._said or record.phase != "select":
            return {}
        kept = {
            task: agreement / start[f"agreement/{task}"]
            for task, agreement in by_task(record.signals, "agreement").items()
            if start.get(f"agreement/{task}", 0.0) > 0
        }
        task = min(kept, key=lambda name: kept[name], default="")
        if not kept or kept[task] >= self.config.drift:
            return {}
        self._said.add(DRIFT)
        now, before = record.signals[f"agreement/{task}"], start[f"agreement/{task}"]
        return {
            DRIFT: f"task {task} goes away from its expert on {record.split}: {now:.0%} of its predictions are the "
            f"expert's (at the start: {before:.0%}); {_REMEDY}"
        }

    def _one_class(self, record: Record, task: str) -> str:
        """What shows that far more predictions are one class than of the expert."""
        share, expert = (record.signals[f"{name}/{task}"] for name in ("top-share", "expert-top-share"))
        if share <= expert + self.config.top_share:
            return ""
        return f"{share:.0%} of its predictions are one class (its expert's: {expert:.0%})"

    def _few_classes(self, record: Record, start: Mapping[str, float], task: str) -> str:
        """What shows that the mean prediction has lost its variety."""
        name = f"marginal-entropy/{task}"
        entropy, expert = record.signals[name], record.signals[f"expert-{name}"]
        least = self.config.marginal_entropy * expert
        if entropy >= least or start.get(name, math.nan) < least:
            return ""
        return f"its predictions have {entropy / expert:.0%} of its expert's variety of classes (marginal entropy)"

    def _bounds(self, record: Record, start: Mapping[str, float]) -> dict[str, str]:
        share = record.signals.get("at-bound", 0.0)
        if BOUNDS in self._said or share < self.config.at_bound or share <= start.get("at-bound", 0.0):
            return {}
        self._said.add(BOUNDS)
        return {
            BOUNDS: f"{share:.0%} of the variables stand at one of their bounds after generation {record.generation}; "
            "widen space.bounds, take smaller steps, or anchor the coefficients to their start"
        }

    def _gradient(self, record: Record) -> dict[str, str]:
        norm = record.gradient_norm
        assert norm is not None
        if len(self._norms) < FIRST:
            self._norms.append(norm)
            return {}
        largest = max(self._norms)
        if GRADIENT in self._said or norm <= self.config.gradient * largest:
            return {}
        self._said.add(GRADIENT)
        return {
            GRADIENT: f"the gradient's norm is {norm:.3g} in generation {record.generation}, and was at most "
            f"{largest:.3g} in the first {FIRST}; a collapse often begins so: take smaller steps (driver.lr)"
        }


@dataclass(frozen=True, slots=True)
class RaisedAlarm:
    """An alarm of a run, where it was first raised.

    Attributes:
        kind: collapse, drift, gradient or at-bound.
        sentence: What it says, with numbers and remedy.
        evaluations: Fit evaluations that had been made.
        record: The trajectory's id.
        times: How many records show it.
    """

    kind: str
    sentence: str
    evaluations: int
    record: int
    times: int


def raised_alarms(records: Iterable[Record]) -> tuple[RaisedAlarm, ...]:
    """The alarms of a trajectory, each kind once, in the order in which they were raised."""
    raised: dict[str, RaisedAlarm] = {}
    count = EvaluationCount()
    for record in records:
        evaluations = count(record)
        for kind, sentence in record.alarms.items():
            first = raised.get(kind)
            raised[kind] = (
                RaisedAlarm(kind, sentence, evaluations, record.id, 1)
                if first is None
                else replace(first, times=first.times + 1)
            )
    return tuple(raised.values())


def by_task(signals: Mapping[str, float], name: str) -> dict[str, float]:
    """Task -> the signal called ``name``.

    >>> by_task({"top-share/topic": 0.1, "expert-top-share/topic": 0.2}, "top-share")
    {'topic': 0.1}
    """
    return {key.partition("/")[2]: value for key, value in signals.items() if key.partition("/")[0] == name}
