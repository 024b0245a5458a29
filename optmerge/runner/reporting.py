"""Scoring on the report split: finalists, and the scores per example that intervals and comparisons need.

    reporting = Reporting(folder, problem, evaluator, journal)
    scores = reporting.scores(record, evaluation)             # task -> metric -> float64[n]
    finalists, leads = reporting.finalists(driver, outcome)   # select's choice first

What a kill took away between a record and its scores is measured again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from optmerge.drivers.base import Driver
from optmerge.errors import RunFailed
from optmerge.merging.coefficients import Table
from optmerge.records import Evaluation, Phase, Record, SplitName, vector_sha256
from optmerge.runner.baselines import Baseline, CachedMeasurements
from optmerge.runner.bootstrap import Means, objective_lead
from optmerge.runner.evaluator import Evaluator, Measurement
from optmerge.runner.finalists import Lead, best_iterates
from optmerge.runner.folder import RunFolder
from optmerge.runner.front import score_front
from optmerge.runner.front_folder import keep_front
from optmerge.runner.journal import Journal, batch_tokens_after
from optmerge.runner.loop import Outcome
from optmerge.runner.problem import Problem
from optmerge.runner.result import Scored, Scores

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Reporting:
    """Scores a run's recipes.

    Attributes:
        folder: The run's.
        problem: That of the current stage.
        evaluator: Measures.
        journal: Records.
        baselines: Those that are scored, by name.
        measurements: What is known of the baselines.
    """

    folder: RunFolder
    problem: Problem
    evaluator: Evaluator
    journal: Journal
    baselines: dict[str, Baseline] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.measurements = CachedMeasurements(self.evaluator)
        self.evaluator.batch_tokens = self._batch_tokens(len(self.journal.trajectory.records))

    @property
    def name(self) -> str:
        """What tables call the search: its drivers, in the order in which they came."""
        stages = self.problem.stages[: len(self.problem.earlier) + 1]
        return "+".join(name for name, _ in groupby(stage.config.driver.name for stage in stages))

    def next(self, phase: Phase, **what: Any) -> tuple[Record, Evaluation]:
        """`Journal.next`, and again in smaller steps where memory ran out: a report misses nothing for that."""
        record, evaluation = self.journal.next(phase, **what)
        while record.batch_tokens is not None:
            record, evaluation = self.journal.next(phase, **what)
        return record, evaluation

    def finalists(self, driver: Driver, outcome: Outcome) -> tuple[list[Scored], list[Lead | None]]:
        """The best iterates by select, scored on report, and how far the first leads each of the others on select.

        The first is select's choice: the search's own row.

        Raises:
            RunFailed: Select's choice cannot be scored.
        """
        config = self.problem.config
        records = self.journal.trajectory.records[: self.journal.cursor]
        iterates = best_iterates(
            records,
            config.budget.finalists,
            collapsed=config.alarms.collapse == "warn",
            objectives=[stage.config.objective for stage in self.problem.stages],
            merge=lambda record: vector_sha256(self.problem.expand_record(record).ravel()),
        )
        assert iterates[0].id == outcome.progress.best_record, "select's choice is the best iterate"
        scored: list[Scored] = []
        for rank, iterate in enumerate(iterates, 1):
            name = self.name if rank == 1 else f"{self.name}:{rank}"
            report, evaluation = self._score(driver, name, iterate, "report")
            if report.error and rank == 1:
                raise RunFailed(f"The best recipe cannot be scored on the report split: {report.error}.")
            if report.error:
                log.warning("the finalist of rank %d failed on the report split: %s", rank, report.error)
                continue
            family = "search" if rank == 1 else "finalist"
            cost = (outcome.progress.evaluations, outcome.progress.seconds)
            scored.append(Scored(name, family, iterate, report, self.scores(report, evaluation), *cost))
        return scored, self._leads(driver, scored)

    def front(
        self, driver: Driver, finalists: Sequence[Scored], *, stop: Callable[[], str | None] = lambda: None
    ) -> None:
        """Score the front of the search and keep it in the run's folder.

        Args:
            driver: The search's last.
            finalists: What `finalists` gave.
            stop: Asked before every evaluation.

        Raises:
            RunInterrupted: ``stop`` gave a reason.
            RunError: The disk refuses.
        """
        config = self.problem.config

        def score(name: str, record: Record, split: SplitName) -> tuple[Record, Evaluation]:
            self.journal.go_on(stop)
            return self._score(driver, name, record, split)

        found = score_front(
            self.journal.trajectory.records[: self.journal.cursor],
            score,
            tasks=list(config.tasks),
            count=config.budget.front,
            finalists=finalists,
            objectives=[stage.config.objective for stage in self.problem.stages],
            collapsed=config.alarms.collapse == "warn",
        )
        if found is not None:
            keep_front(found, self.folder, self.problem, driver=self.name)

    def scores(self, record: Record, evaluation: Evaluation) -> Scores:
        """A recorded evaluation's scores per example: as just made, from the run's folder, or measured again."""
        if evaluation.per_example is not None:
            self.folder.save_examples(record.id, evaluation.per_example)
            return evaluation.per_example
        kept = self.folder.load_examples(record.id)
        if kept is not None:
            return kept
        now = self.evaluator.batch_tokens
        self.evaluator.batch_tokens = self._batch_tokens(record.id)
        found = self._again(record)
        self.evaluator.batch_tokens = now
        if isinstance(found, Evaluation):
            raise RunFailed(f"{record.name} could be scored before the interruption, and not now: {found.error}.")
        self.folder.save_examples(record.id, found.per_example)
        return found.per_example

    def _score(self, driver: Driver, name: str, iterate: Record, split: SplitName) -> tuple[Record, Evaluation]:
        """One iterate with its scores per example: on report by the metrics, on select by the objective."""

        def make() -> Evaluation:
            found = self._measure(self.problem.expand_record(iterate), split)
            if isinstance(found, Evaluation):
                return found
            return self.evaluator.judge(found, split) if split == "select" else metrics_only(found)

        return self.next(
            "report",
            driver=driver.name,
            split=split,
            vector=iterate.vector,
            make=make,
            name=name,
            stage=iterate.stage,
        )

    def _measure(self, table: Table, split: SplitName) -> Measurement | Evaluation:
        judged = split == "select"

        def work() -> Measurement:
            return self.evaluator.measure(table, split, objective=judged, metrics=not judged, per_example=True)

        return self.evaluator.attempt(work, split)

    def _leads(self, driver: Driver, scored: Sequence[Scored]) -> list[Lead | None]:
        """How far the first leads each of the others on select; None where a term has no scores per example."""
        objective = self.problem.objective.on("select")
        if len(scored) < 2 or objective.whole:
            return [None] * (len(scored) - 1)
        arrays: list[Scores | None] = []
        for finalist in scored:
            record, evaluation = self._score(driver, finalist.name, finalist.select, "select")
            arrays.append(None if record.error else self.scores(record, evaluation))

        def value(means: Means) -> float:
            return objective.combine("select", means)[0]

        best, *others = arrays
        seed = self.problem.config.seed
        return [
            None if best is None or other is None else objective_lead(value, best, other, seed=seed) for other in others
        ]

    def _again(self, record: Record) -> Measurement | Evaluation:
        """What the run was killed before it could keep."""
        if record.vector is not None:
            return self._measure(self.problem.expand_record(record), record.split)
        assert record.name is not None, "a baseline's record has its name"
        return self.measurements.measure(self.baselines[record.name].table, "report", objective=False, metrics=True)

    def _batch_tokens(self, record: int) -> int:
        """The micro-batch in force before the record with this number."""
        return batch_tokens_after(self.journal.trajectory.records[:record], self.problem.config.batch_tokens)


def metrics_only(measured: Measurement) -> Evaluation:
    """A report evaluation: metrics without an objective, so its value is recorded as null."""
    return Evaluation(
        math.nan,
        {},
        measured.means,
        per_example=measured.per_example,
        seconds=measured.seconds,
        parts=measured.parts,
        signals=measured.signals,
    )
