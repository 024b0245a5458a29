"""The one loop: ask, judge on fit, choose on select, tell, save.

Every driver goes through it, gradient ones included. It knows neither models nor data: a `Judge` evaluates vectors.

    outcome = run_loop(driver, judge, journal, budget, state, stop=lambda: None)
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal, Protocol

from optmerge.config.schema import BudgetConfig
from optmerge.drivers.base import Driver
from optmerge.errors import RunFailed, RunInterrupted
from optmerge.records import Candidate, Evaluation, Record, Vector
from optmerge.runner.alarms import COLLAPSE
from optmerge.runner.budget import Progress, affordable, cost, exhausted, out_of_time, remaining
from optmerge.runner.journal import Journal, substitute_failures
from optmerge.runner.state import StateStore

log = logging.getLogger(__name__)

FAILED_GENERATIONS = 3  # so many generations without one finite value end the run
SAVE_SECONDS = 1.0  # state is saved at most this often; what lies between is replayed from the trajectory


class Judge(Protocol):
    """Evaluates vectors for the loop."""

    def fit(self, candidate: Candidate) -> Evaluation:
        """The objective of a candidate on (its part of) the fit split, with what the candidate needs."""

    def select(self, vector: Vector) -> Evaluation:
        """The objective of a vector on the whole select split."""


@dataclass(frozen=True)
class Outcome:
    """How a search ended. ``best`` is the vector with the lowest select value, None if none has one."""

    reason: str
    best: Vector | None
    progress: Progress


def run_loop(
    driver: Driver,
    judge: Judge,
    journal: Journal,
    budget: BudgetConfig,
    store: StateStore,
    *,
    stop: Callable[[], str | None] = lambda: None,
    collapse: Literal["stop", "restore", "warn"] = "stop",
) -> Outcome:
    """Search until a limit, the driver, an alarm or the user says stop.

    Args:
        driver: Asks, and is told.
        judge: Evaluates.
        journal: Records, and raises alarms.
        budget: The limits.
        store: Where states are saved.
        stop: Asked before every evaluation; a reason interrupts the run.
        collapse: What an iterate that has collapsed does. Unless it is ``warn``, such an iterate is never the best.

    Raises:
        RunInterrupted: ``stop`` gave a reason; state is saved.
        RunFailed: Three generations in a row had no finite value.
    """
    begun = journal.trajectory.records[journal.cursor - 1].elapsed if journal.cursor else 0.0
    progress = Progress()
    saved = store.load(limit=len(journal.trajectory.records))
    if saved is not None:
        driver.load_state_dict(saved.driver)
        progress = Progress(**saved.progress)  # type: ignore[arg-type]
        journal.seek(saved.cursor)
    last_save = time.perf_counter()

    def save() -> None:
        store.save(journal.cursor, driver.state_dict(), asdict(progress))

    while True:
        reason = exhausted(budget, progress) or _driver_stop(driver)
        if reason:
            break
        candidates = driver.ask()
        left = remaining(budget, progress)
        candidates, asked = affordable(candidates, left), candidates
        if not candidates:
            reason = f"{left} evaluations are left of {budget.evaluations}, and the next step counts {cost(asked[0])}"
            break
        evaluations: list[Evaluation] = []
        alarm: str | None = None
        for candidate in candidates:
            if not journal.replaying:
                why = stop()
                if why:
                    raise RunInterrupted(why)
                reason = out_of_time(budget, progress)
                if reason:
                    break
            record, evaluation = journal.next(
                "search",
                driver=driver.name,
                split="fit",
                vector=candidate.vector,
                make=lambda candidate=candidate: judge.fit(candidate),  # type: ignore[misc]
                generation=progress.generation,
                examples=examples_hash(candidate),
                info=driver.info(),
            )
            evaluations.append(evaluation)
            alarm = alarm or _collapse(record, collapse)
            progress.evaluations += cost(candidate)
            progress.seconds = journal.trajectory.records[journal.cursor - 1].elapsed - begun
        told = substitute_failures(evaluations) if evaluations else None
        if told is None:
            if reason:
                break
            if all(evaluation.batch_tokens is None for evaluation in evaluations):  # smaller steps may still succeed
                progress.failed_generations += 1
            if progress.failed_generations >= FAILED_GENERATIONS:
                raise RunFailed(
                    f"{FAILED_GENERATIONS} generations in a row had no finite value; the last reason was: "
                    f"{evaluations[-1].error}. Every evaluation is recorded in {journal.trajectory.folder}."
                )
            progress.generation += 1
            continue
        progress.failed_generations = 0
        if alarm is None and (progress.generation % budget.select_every == 0 or reason or exhausted(budget, progress)):
            index = min(range(len(told)), key=lambda i: (evaluations[i].failed, told[i].value))
            record, evaluation = _score_select(judge, journal, driver, progress, candidates[index].vector)
            alarm = _collapse(record, collapse)
            _note_best(progress, record, evaluation, eligible=alarm is None)
            progress.seconds = journal.trajectory.records[journal.cursor - 1].elapsed - begun
        if alarm is not None and not (collapse == "restore" and _restore(driver, journal, progress, alarm)):
            reason = progress.ended = alarm
        if reason:
            break
        if alarm is None:
            driver.tell(candidates, told)
        progress.generation += 1
        if time.perf_counter() - last_save > SAVE_SECONDS:
            save()
            last_save = time.perf_counter()
    save()
    best = None
    if progress.best_record is not None:
        best = journal.trajectory.records[progress.best_record].vector
    assert reason is not None
    return Outcome(reason, best, progress)


def examples_hash(candidate: Candidate) -> str:
    """The word "all", or a hash of the positions that a candidate is judged on."""
    if candidate.examples is None:
        return "all"
    listed = {task: list(map(int, positions)) for task, positions in candidate.examples.items()}
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()[:16]


def _score_select(
    judge: Judge, journal: Journal, driver: Driver, progress: Progress, vector: Vector
) -> tuple[Record, Evaluation]:
    return journal.next(
        "select",
        driver=driver.name,
        split="select",
        vector=vector,
        make=lambda: judge.select(vector),
        generation=progress.generation,
    )


def _note_best(progress: Progress, record: Record, evaluation: Evaluation, *, eligible: bool) -> None:
    progress.stale += 1
    if eligible and not evaluation.failed and (progress.best is None or evaluation.value < progress.best):
        progress.best, progress.best_record, progress.stale = evaluation.value, record.id, 0


def _collapse(record: Record, action: str) -> str | None:
    """What a record says of a collapse, where that has a consequence."""
    return None if action == "warn" else record.alarms.get(COLLAPSE)


def _restore(driver: Driver, journal: Journal, progress: Progress, alarm: str) -> bool:
    """Go back to the best iterate with smaller steps: once in a search, and only with a driver that can."""
    if progress.restored or progress.best_record is None:
        return False
    vector = journal.trajectory.records[progress.best_record].vector
    assert vector is not None
    if not driver.restart(vector):
        return False
    progress.restored = True
    log.warning("%s. The search goes back to its best iterate, with smaller steps", alarm)
    return True


def _driver_stop(driver: Driver) -> str | None:
    reasons = driver.stop()
    if not reasons:
        return None
    return f"{driver.name} stopped by itself: " + "; ".join(f"{name} {why}".strip() for name, why in reasons.items())
