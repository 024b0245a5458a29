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
from typing import Protocol

from optmerge.config.schema import BudgetConfig
from optmerge.drivers.base import Driver
from optmerge.errors import RunFailed, RunInterrupted
from optmerge.records import Candidate, Evaluation, Vector
from optmerge.runner.budget import Progress, exhausted, out_of_time, remaining
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
) -> Outcome:
    """Search until a limit, the driver or the user says stop.

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
        candidates = candidates if left is None else candidates[:left]
        evaluations: list[Evaluation] = []
        for candidate in candidates:
            if not journal.replaying:
                why = stop()
                if why:
                    raise RunInterrupted(why)
                reason = out_of_time(budget, progress)
                if reason:
                    break
            _, evaluation = journal.next(
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
            progress.evaluations += 1
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
        if progress.generation % budget.select_every == 0 or reason or exhausted(budget, progress):
            index = min(range(len(told)), key=lambda i: (evaluations[i].failed, told[i].value))
            _score_select(judge, journal, driver, progress, candidates[index].vector)
            progress.seconds = journal.trajectory.records[journal.cursor - 1].elapsed - begun
        if reason:
            break
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


def _score_select(judge: Judge, journal: Journal, driver: Driver, progress: Progress, vector: Vector) -> None:
    record, evaluation = journal.next(
        "select",
        driver=driver.name,
        split="select",
        vector=vector,
        make=lambda: judge.select(vector),
        generation=progress.generation,
    )
    progress.stale += 1
    if not evaluation.failed and (progress.best is None or evaluation.value < progress.best):
        progress.best, progress.best_record, progress.stale = evaluation.value, record.id, 0


def _driver_stop(driver: Driver) -> str | None:
    reasons = driver.stop()
    if not reasons:
        return None
    return f"{driver.name} stopped by itself: " + "; ".join(f"{name} {why}".strip() for name, why in reasons.items())
