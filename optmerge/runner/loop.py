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
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Literal, Protocol

import numpy as np

from optmerge.config.schema import BudgetConfig
from optmerge.drivers.base import Driver
from optmerge.errors import RunFailed, RunInterrupted
from optmerge.records import Candidate, Evaluation, Record, Vector
from optmerge.runner.alarms import COLLAPSE
from optmerge.runner.budget import (
    Progress,
    StageLimits,
    affordable,
    cost,
    exhausted,
    looked_at,
    out_of_time,
    remaining,
    spend,
    stage_done,
)
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
    """How a search, or a stage of it, ended.

    Attributes:
        best: The vector with the lowest select value, None if none has one; of the stage in its record.
        over: Whether a limit of the whole search was reached.
    """

    reason: str
    best: Vector | None
    progress: Progress
    over: bool


def run_loop(
    driver: Driver,
    judge: Judge,
    journal: Journal,
    budget: BudgetConfig,
    store: StateStore,
    *,
    stop: Callable[[], str | None] = lambda: None,
    collapse: Literal["stop", "restore", "warn"] = "stop",
    limits: StageLimits | None = None,
    before: Progress | None = None,
    look: Callable[[Candidate], Candidate] = lambda candidate: candidate,
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
        limits: Of this stage of a schedule.
        before: Where the search stood when the stage began; None is the beginning.
        look: Which examples a driver's candidate is judged on, where the driver does not know of all.

    Raises:
        RunInterrupted: ``stop`` gave a reason; every evaluation so far is recorded.
        RunFailed: Three generations in a row had no finite value.
    """
    limits = limits or StageLimits()
    progress = Progress() if before is None else replace(before)
    begun = (journal.trajectory.records[journal.cursor - 1].elapsed if journal.cursor else 0.0) - progress.seconds
    saved = store.load(limit=len(journal.trajectory.records))
    if saved is not None:
        driver.load_state_dict(saved.driver)
        progress = Progress(**saved.progress)  # type: ignore[arg-type]
        journal.seek(saved.cursor)
    last_save = time.perf_counter()
    whole = sum(driver.fit_sizes.values()) or 1  # examples of an evaluation

    def save() -> None:
        store.save(journal.cursor, driver.state_dict(), asdict(progress))

    while True:
        upcoming = journal.upcoming()
        if upcoming is not None and upcoming.phase == "search" and upcoming.stage == journal.stage:
            driver.recall(upcoming)
        reason = exhausted(budget, progress) or stage_done(limits, progress) or _driver_stop(driver)
        if reason:
            break
        candidates = [look(candidate) for candidate in driver.ask()]
        if not candidates:  # other processes work on what is left of a shared study
            why = stop()
            if why:
                raise RunInterrupted(why)
            progress.seconds = journal.elapsed - begun
            continue
        left = remaining(budget, progress, limits)
        candidates, asked = affordable(candidates, left, whole=whole, part=progress.part), candidates
        if not candidates:
            reason = f"{left} evaluations are left, and the next step counts {cost(asked[0])}"
            if progress.part:  # rungs leave a rest
                reason = "what is left of the budget is less than the next evaluation"
            break
        evaluations: list[Evaluation] = []
        judged: list[int] = []  # their records
        alarm: str | None = None
        for candidate in candidates:
            if not journal.replaying:
                why = stop()
                if why:
                    raise RunInterrupted(why)
            reason = out_of_time(budget, progress)  # by recorded times, so that a replay ends where the search did
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
                share=looked_at(candidate, whole) / whole if candidate.rung else 1.0,
                counts=cost(candidate),
                verdict=partial(driver.prunes, candidate),
            )
            evaluations.append(evaluation)
            judged.append(record.id)
            alarm = alarm or _collapse(record, collapse)
            spend(progress, candidate, whole)
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
        last = reason or exhausted(budget, progress) or stage_done(limits, progress)
        index = min(range(len(told)), key=lambda i: (evaluations[i].failed, told[i].value))
        rung = candidates[index].rung
        if alarm is None and not rung and (progress.generation % budget.select_every == 0 or last):
            alarm = _score_select(judge, journal, driver, progress, judged[index], collapse)
            progress.seconds = journal.trajectory.records[journal.cursor - 1].elapsed - begun
        elif alarm is None and not rung:
            progress.unscored = judged[index]
        if alarm is not None and not (collapse == "restore" and _restore(driver, journal, progress, alarm)):
            reason = progress.ended = alarm
        if reason:
            break
        if alarm is None:
            driver.tell(candidates, told)
        progress.generation += not rung
        if time.perf_counter() - last_save > SAVE_SECONDS:
            save()
            last_save = time.perf_counter()
    if progress.unscored is not None and progress.ended is None:  # the search ended where nobody could know it
        _score_select(judge, journal, driver, progress, progress.unscored, collapse)
        progress.seconds = journal.trajectory.records[journal.cursor - 1].elapsed - begun
    save()
    best = None
    if progress.best_record is not None:
        best = journal.trajectory.records[progress.best_record].vector
    assert reason is not None
    return Outcome(reason, best, progress, exhausted(budget, progress) is not None)


def examples_hash(candidate: Candidate) -> str:
    """The word "all", or a hash of the positions that a candidate is judged on."""
    if candidate.examples is None:
        return "all"
    listed = {task: list(map(int, positions)) for task, positions in candidate.examples.items()}
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()[:16]


def _score_select(
    judge: Judge, journal: Journal, driver: Driver, progress: Progress, number: int, collapse: str
) -> str | None:
    """Score the candidate of a record on select and note whether it is the best; what that says of a collapse."""
    found = journal.trajectory.records[number]
    vector = found.vector
    assert vector is not None, "a candidate has its vector"
    record, evaluation = journal.next(
        "select",
        driver=driver.name,
        split="select",
        vector=vector,
        make=lambda: judge.select(vector),
        generation=found.generation,
    )
    alarm = _collapse(record, collapse)
    progress.unscored = None
    # Where a stage starts is what it is compared with, and no attempt to be better.
    stale = int(found.generation > 0 or not np.array_equal(vector, driver.variables.start))
    progress.stale += stale
    progress.stage_stale += stale
    if alarm is None and not evaluation.failed and (progress.best is None or evaluation.value < progress.best):
        progress.best, progress.best_record = evaluation.value, record.id
        progress.stale = progress.stage_stale = 0
    return alarm


def _collapse(record: Record, action: str) -> str | None:
    """What a record says of a collapse, where that has a consequence."""
    return None if action == "warn" else record.alarms.get(COLLAPSE)


def _restore(driver: Driver, journal: Journal, progress: Progress, alarm: str) -> bool:
    """Go back to the best iterate with smaller steps: once in a search, and only with a driver that can."""
    if progress.restored or progress.best_record is None:
        return False
    best = journal.trajectory.records[progress.best_record]
    vector = best.vector if best.stage == journal.stage else driver.variables.start  # where this stage began
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
