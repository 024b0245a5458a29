"""The journal: the trajectory as the source of events.

A search is a deterministic function of its evaluations. After a resume the loop runs again from the last saved state
and asks for the same evaluations in the same order; those that the trajectory already holds are handed back from it,
the others are made, written, and shown to the sinks.

    journal = Journal(Trajectory.open(run), sinks)
    record, evaluation = journal.next("select", driver="adam", split="select", vector=v, make=lambda: judge(v))
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from optmerge.errors import RunError, RunInterrupted
from optmerge.records import (
    OBJECTIVE,
    Candidate,
    Evaluation,
    Phase,
    Record,
    Sink,
    SplitName,
    Trajectory,
    Vector,
    vector_sha256,
)
from optmerge.runner.alarms import Alarms


class Journal:
    """Hands out recorded evaluations first, then makes new ones.

    Args:
        trajectory: Opened for appending.
        sinks: Shown every new record.
        alarms: Look at every record, in order, before it is written; None looks at nothing.

    Attributes:
        cursor: How many records were handed out or made.
        stage: The schedule's stage that asks.
    """

    def __init__(self, trajectory: Trajectory, sinks: Sequence[Sink] = (), alarms: Alarms | None = None) -> None:
        self.trajectory = trajectory
        self.sinks = tuple(sinks)
        self.cursor = 0
        self.stage = 0
        self._alarms = alarms
        if alarms is not None:
            for record in trajectory.records:
                alarms.see(record)
        last = trajectory.records[-1].elapsed if trajectory.records else 0.0
        self._clock = time.perf_counter() - last

    @property
    def elapsed(self) -> float:
        """Seconds of work since the run began, summed over resumes."""
        return time.perf_counter() - self._clock

    @property
    def replaying(self) -> bool:
        """Whether the next evaluation is already recorded."""
        return self.cursor < len(self.trajectory.records)

    def upcoming(self) -> Record | None:
        """The record that the next evaluation is handed back from; None when it will be made."""
        return self.trajectory.records[self.cursor] if self.replaying else None

    def go_on(self, stop: Callable[[], str | None]) -> None:
        """Ask whether to stop, unless the next evaluation is recorded already.

        Raises:
            RunInterrupted: ``stop`` gave a reason.
        """
        why = None if self.replaying else stop()
        if why:
            raise RunInterrupted(why)

    def seek(self, cursor: int) -> None:
        """Continue behind the first ``cursor`` records.

        Raises:
            RunError: There are fewer.
        """
        if cursor > len(self.trajectory.records):
            raise RunError(
                f"{self.trajectory.folder}: the saved state knows {cursor} evaluations, trajectory.jsonl only "
                f"{len(self.trajectory.records)}. Lines are missing: restore the file from a copy."
            )
        self.cursor = cursor

    def next(
        self,
        phase: Phase,
        *,
        driver: str,
        split: SplitName,
        vector: Vector | None,
        make: Callable[[], Evaluation],
        generation: int = 0,
        name: str | None = None,
        examples: str = "all",
        info: Mapping[str, float] | None = None,
        stage: int | None = None,
        share: float = 1.0,
        counts: int = 1,
        verdict: Callable[[Evaluation], bool] | None = None,
        asked: int | None = None,
    ) -> tuple[Record, Evaluation]:
        """The next evaluation: the recorded one, or ``make()`` recorded.

        Args:
            phase: What it is for.
            driver: Who asks.
            split: What is looked at.
            vector: float64[d], what is judged; None for a baseline, which has a ``name``.
            make: Evaluates; not called where the evaluation is recorded.
            generation: The driver's.
            name: Of a baseline or a finalist.
            examples: Those of the split, as `examples_hash` gives them.
            info: What the driver says of itself.
            stage: The one whose search space ``vector`` is of; None is the one that asks.
            share: How much of the split's examples is looked at.
            counts: How many evaluations it takes of the budget.
            verdict: Says of a value on a ``share`` of the examples whether it is the vector's last.
            asked: At which place it was asked for, where evaluations are recorded as they end.

        Returns:
            The record, and the evaluation; one that is handed back has of its scores per example the objective's only,
            where a driver wanted these.

        Raises:
            RunError: The recorded one is another evaluation than the one asked for.
        """
        digest = None if vector is None else vector_sha256(vector)
        stage = self.stage if stage is None else stage
        if self.replaying:
            record = self.trajectory.records[self.cursor]
            wanted = (phase, split, digest, examples, name, stage)
            found = (record.phase, record.split, record.vector_sha256, record.examples, record.name, record.stage)
            if wanted != found:
                raise RunError(
                    f"{self.trajectory.folder}: evaluation {record.id} in the trajectory is {found}, but the search "
                    f"asks for {wanted}. Its settings, seed or libraries have changed since; start a new run in "
                    "another folder."
                )
            self.cursor += 1
            return record, _evaluation(record)
        evaluation = make()
        gradient = evaluation.gradient
        record = Record(
            id=len(self.trajectory.records),
            phase=phase,
            driver=driver,
            split=split,
            value=None if evaluation.failed else float(evaluation.value),
            stage=stage,
            generation=generation,
            name=name,
            per_task=dict(evaluation.per_task),
            metrics={task: dict(values) for task, values in evaluation.metrics.items()},
            vector_sha256=digest,
            examples=examples,
            share=share,
            counts=counts,
            asked=asked,
            pruned=verdict is not None and not evaluation.failed and verdict(evaluation),
            seconds=dict(evaluation.seconds),
            memory=dict(evaluation.memory),
            elapsed=self.elapsed,
            gradient_norm=None if gradient is None else float(np.linalg.norm(gradient)),
            signals=dict(evaluation.signals),
            parts=dict(evaluation.parts),
            error=evaluation.error,
            batch_tokens=evaluation.batch_tokens,
            info=dict(info or {}),
            vector=vector,
            gradient=gradient,
            curvature=evaluation.curvature,
            costs=_costs(evaluation),
        )
        if self._alarms is not None:
            record = replace(record, alarms=self._alarms.see(record))
        self.trajectory.append(record)
        self.cursor += 1
        for sink in self.sinks:
            sink.record(record)
        return record, evaluation


def _evaluation(record: Record) -> Evaluation:
    return Evaluation(
        value=float("nan") if record.value is None else record.value,
        per_task=record.per_task,
        metrics=record.metrics,
        gradient=record.gradient,
        curvature=record.curvature,
        per_example=None
        if record.costs is None
        else {task: {OBJECTIVE: costs} for task, costs in record.costs.items()},
        error=record.error,
        seconds=record.seconds,
        memory=record.memory,
        signals=record.signals,
        parts=record.parts,
        batch_tokens=record.batch_tokens,
    )


def _costs(evaluation: Evaluation) -> dict[str, Vector] | None:
    """Task -> the objective by example, where the driver asked for it: it must be told the same after a resume."""
    found = {task: arrays[OBJECTIVE] for task, arrays in (evaluation.per_example or {}).items() if OBJECTIVE in arrays}
    return found or None


def batch_tokens_after(records: Iterable[Record], configured: int) -> int:
    """The most tokens in a forward pass after these records: as configured, or what shortages of memory have left.

    It depends on the trajectory alone, so a resumed run has the micro-batches of an uninterrupted one.
    """
    left = [record.batch_tokens for record in records if record.batch_tokens is not None]
    return min(left, default=configured)  # a worker that was at it before may say later that more is too much


def examples_hash(candidate: Candidate) -> str:
    """The word "all", or a hash of the positions that a candidate is judged on."""
    if candidate.examples is None:
        return "all"
    listed = {task: list(map(int, positions)) for task, positions in candidate.examples.items()}
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()[:16]


def substitute_failures(evaluations: Sequence[Evaluation]) -> list[Evaluation] | None:
    """Failed evaluations with the generation's worst finite value in their place; None if all failed.

    A failed evaluation's gradient is zero, and it has no curvature: the driver learns that the point is bad, not where
    to go.
    """
    finite = [evaluation.value for evaluation in evaluations if not evaluation.failed]
    if not finite:
        return None
    worst = max(finite)
    return [
        replace(evaluation, value=worst, error=None, gradient=_like(evaluation.gradient), curvature=None)
        if evaluation.failed
        else evaluation
        for evaluation in evaluations
    ]


def _like(gradient: Vector | None) -> Vector | None:
    return None if gradient is None else np.zeros_like(gradient)
