"""The one loop: ask, have judged on fit, choose on select, tell, save.

Every driver goes through it, gradient ones included. It knows neither models nor data, nor where evaluations run: an
`Executor` has them made, in this process or in many.

    outcome = run_loop(driver, InProcess(judge), journal, budget, state, stop=lambda: None)

In generations, a driver is told of all candidates of one in their order, whoever was done first, and the trajectory is
that of one worker. With several workers the next generation is evaluated while the best of the last one is scored on
select; its records wait. Without generations (`deterministic` is false, and the driver overlaps) the next candidate is
drawn whenever one has ended, and the driver is told of as many as it wants to know at once, as they end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import InitVar, asdict, dataclass, replace
from functools import partial

import numpy as np

from optmerge.config.schema import BudgetConfig
from optmerge.drivers.base import Driver
from optmerge.errors import RunFailed
from optmerge.records import Candidate, Evaluation, Record, Vector
from optmerge.runner.budget import (
    Progress,
    StageLimits,
    affordable,
    cost,
    exhausted,
    looked_at,
    note_select,
    remaining,
    settled,
    spend,
    stage_done,
)
from optmerge.runner.collapse import Consequence, go_back, told_collapse
from optmerge.runner.executor import Executor
from optmerge.runner.journal import Journal, examples_hash, substitute_failures
from optmerge.runner.outstanding import Asked, Outstanding
from optmerge.runner.state import StateStore

FAILED_GENERATIONS = 3  # so many generations without one finite value end the run
RESERVE = 8  # without generations, one candidate for so many workers is drawn before there is a worker for it
SAVE_SECONDS = 1.0  # state is saved at most this often; what lies between is replayed from the trajectory


@dataclass(frozen=True)
class Outcome:
    """How a search, or a stage of it, ended.

    Attributes:
        reason: Why, in a sentence.
        best: The vector with the lowest select value, None if none has one; of the stage in its record.
        progress: Where the search stands.
        over: Whether a limit of the whole search was reached.
        idle: The share of the workers' time in which nothing was evaluated; None where all was recorded before.
    """

    reason: str
    best: Vector | None
    progress: Progress
    over: bool
    idle: float | None = None


@dataclass(frozen=True, slots=True)
class _Judged:
    """A candidate of the generation that is being judged."""

    asked: Asked
    record: Record
    evaluation: Evaluation


def run_loop(
    driver: Driver,
    executor: Executor,
    journal: Journal,
    budget: BudgetConfig,
    store: StateStore,
    *,
    stop: Callable[[], str | None] = lambda: None,
    collapse: Consequence = "stop",
    limits: StageLimits | None = None,
    before: Progress | None = None,
    look: Callable[[Candidate], Candidate] = lambda candidate: candidate,
    deterministic: bool = True,
) -> Outcome:
    """Search until a limit, the driver, an alarm or the user says stop.

    Args:
        driver: Asks, and is told.
        executor: Has evaluations made.
        journal: Records, and raises alarms.
        budget: The limits.
        store: Where states are saved, of a search in generations.
        stop: Asked before every evaluation, and while one is waited for; a reason interrupts the run.
        collapse: What an iterate that has collapsed does. Unless it is ``warn``, such an iterate is never the best.
        limits: Of this stage of a schedule.
        before: Where the search stood when the stage began; None is the beginning.
        look: Which examples a driver's candidate is judged on, where the driver does not know of all.
        deterministic: Whether a driver that could do without generations is told in generations all the same.

    Raises:
        RunInterrupted: ``stop`` gave a reason; every evaluation so far is recorded.
        RunFailed: Three generations in a row had no finite value.
    """
    search = _Search(
        driver,
        executor,
        journal,
        budget,
        store,
        stop=stop,
        collapse=collapse,
        limits=limits or StageLimits(),
        progress=Progress() if before is None else replace(before),
        look=look,
        generations=deterministic or not driver.overlaps,
    )
    try:
        return search.run()
    finally:
        search.outstanding.drop()


@dataclass(eq=False)
class _Search:
    """A search, or a stage of it, as `run_loop` describes it."""

    driver: Driver
    executor: InitVar[Executor]
    journal: Journal
    budget: BudgetConfig
    store: StateStore
    stop: Callable[[], str | None]
    collapse: Consequence
    limits: StageLimits
    progress: Progress
    look: Callable[[Candidate], Candidate]
    generations: bool

    def __post_init__(self, executor: Executor) -> None:
        self.outstanding = Outstanding(executor, self.journal, in_order=self.generations)
        # Something lies ready for whoever is done, so that nobody waits for the driver and the disk.
        self._room = executor.workers + (-(-executor.workers // RESERVE) if executor.workers > 1 else 0)
        # A driver that goes back to its best iterate must not have been told more, and one worker does one thing.
        self._ahead = executor.workers > 1 and self.collapse != "restore"
        self._begun = self._recorded() - self.progress.seconds
        self._whole = sum(self.driver.fit_sizes.values()) or 1  # examples of an evaluation
        self._batch: list[_Judged] = []  # of the generation that is being judged
        self._drawn = 0  # candidates
        self._cut: str | None = None  # why a generation ended before its end
        self._spent: str | None = None  # why what is left of the budget cannot be used
        self._told = False  # whether the driver knows of the last generation
        self._last_save = time.perf_counter()

    def run(self) -> Outcome:
        """Ask, take what was judged, close generations, until there is a reason not to."""
        saved = self.store.load(limit=len(self.journal.trajectory.records)) if self.generations else None
        if saved is not None:
            self.driver.load_state_dict(saved.driver)
            self.progress = Progress(**saved.progress)  # type: ignore[arg-type]
            self.journal.seek(saved.cursor)
        while True:
            over = self._over()
            if over is not None:
                self._let_go()
            else:
                over = self._ask()
            if over is not None and self._batch and not self.outstanding.fits:
                alarm = self._close(cut=over)
            elif len(self.outstanding):
                self.journal.go_on(self.stop)
                alarm = self._take()
                self._save_if_due()
            elif over is not None:
                break
            else:
                continue
            self.progress.ended = alarm
        progress = self.progress
        if progress.unscored is not None and progress.ended is None:  # the search ended where nobody could know it
            self._score(progress.unscored)
            self._take()
        if self.generations:
            self._save()
        best = None
        if progress.best_record is not None:
            best = self.journal.trajectory.records[progress.best_record].vector
        return Outcome(over, best, progress, exhausted(self.budget, progress) is not None, self.outstanding.idle())

    def _over(self) -> str | None:
        """The reason to ask for nothing more, by what is recorded."""
        reached = exhausted(self.budget, self.progress) or stage_done(self.limits, self.progress)
        return self.progress.ended or self._cut or reached or self._spent

    def _let_go(self) -> None:
        """Forget what is out and will not be recorded."""
        if settled(self.budget, self.limits, self.progress):
            self.outstanding.drop()
            self._batch.clear()
        else:
            self.outstanding.drop("fit")

    def _ask(self) -> str | None:
        """Ask for what there is room for; the driver's or the budget's reason where nothing more is asked for."""
        if self.generations:
            busy = self.outstanding.fits or self._batch or (len(self.outstanding) and not self._ahead)
            return None if busy else self._ask_generation()
        while len(self.outstanding) < self._room:
            over = _driver_stop(self.driver)
            left = remaining(self.budget, self.progress, self.limits)
            if over is not None or (left is not None and left <= self.outstanding.fits):
                return over
            self._out(self.look(self.driver.draw()))
        return None

    def _ask_generation(self) -> str | None:
        upcoming = self.journal.upcoming()
        if upcoming is not None and upcoming.phase == "search" and upcoming.stage == self.journal.stage:
            self.driver.recall(upcoming)
        over = _driver_stop(self.driver)
        if over is not None:
            return over
        asked = [self.look(candidate) for candidate in self.driver.ask()]
        if not asked:  # other processes work on what is left of a shared study
            self.journal.go_on(self.stop)
            self.progress.seconds = self.journal.elapsed - self._begun
            return None
        left = remaining(self.budget, self.progress, self.limits)
        candidates = affordable(asked, left, whole=self._whole, part=self.progress.part)
        if not candidates:
            self._spent = f"{left} evaluations are left, and the next step counts {cost(asked[0])}"
            if self.progress.part:  # rungs leave a rest
                self._spent = "what is left of the budget is less than the next evaluation"
        for candidate in candidates:
            self._out(candidate)
        return self._spent

    def _out(self, candidate: Candidate) -> None:
        self.outstanding.add(Asked("fit", candidate, self._drawn))
        self._drawn += 1

    def _take(self) -> str | None:
        """Record what was judged next, and close the generation that it completes; what it says of a collapse."""
        asked, place, make = self.outstanding.next(self.stop)
        number = None if self.generations else place
        if asked.split == "select":
            return self._selected(asked, number, make)
        candidate, progress = asked.candidate, self.progress
        record, evaluation = self.journal.next(
            "search",
            driver=self.driver.name,
            split="fit",
            vector=candidate.vector,
            make=make,
            generation=progress.generation,
            examples=examples_hash(candidate),
            info=self.driver.info(),
            share=looked_at(candidate, self._whole) / self._whole if candidate.rung else 1.0,
            counts=cost(candidate),
            verdict=partial(self.driver.prunes, candidate),
            asked=number,
        )
        self._batch.append(_Judged(asked, record, evaluation))
        spend(progress, candidate, self._whole)
        self._note_time()
        complete = not self.outstanding.fits if self.generations else len(self._batch) >= self.driver.quorum
        return self._close() if complete else None

    def _close(self, cut: str | None = None) -> str | None:
        """Score a generation's best on select, and tell the driver; what that says of a collapse.

        Args:
            cut: Why the generation ends before its end, and the search with it.
        """
        batch, self._batch = self._batch, []
        progress, evaluations = self.progress, [one.evaluation for one in batch]
        told = substitute_failures(evaluations)
        self._cut = cut
        if told is None:
            if cut is None:
                self._count_failure(batch)
            return None
        progress.failed_generations = 0
        alarm = next((found for one in batch if (found := told_collapse(one.record, self.collapse))), None)
        last = cut or exhausted(self.budget, progress) or stage_done(self.limits, progress)
        best = batch[min(range(len(told)), key=lambda i: (evaluations[i].failed, told[i].value))]
        rung = best.asked.candidate.rung
        if alarm is None and not rung and (progress.generation % self.budget.select_every == 0 or last):
            self._score(best.record.id)
            if self.generations and not self._ahead:
                alarm = self._take()
        elif alarm is None and not rung:
            progress.unscored = best.record.id
        if alarm is not None and not (
            self.collapse == "restore" and go_back(self.driver, self.journal, progress, alarm)
        ):
            return alarm
        if cut is not None:
            return None
        if alarm is None:
            self._tell(batch, told)
        progress.generation += not rung
        self._told = True
        return None

    def _tell(self, batch: Sequence[_Judged], told: Sequence[Evaluation]) -> None:
        if self.generations:
            self.driver.tell([one.asked.candidate for one in batch], told)
        else:
            self.driver.absorb([one.asked.number for one in batch], told)

    def _count_failure(self, batch: Sequence[_Judged]) -> None:
        """A generation had no finite value; the driver is told of none."""
        progress = self.progress
        if all(one.evaluation.batch_tokens is None for one in batch):  # smaller steps may still succeed
            progress.failed_generations += 1
        if progress.failed_generations >= FAILED_GENERATIONS:
            raise RunFailed(
                f"{FAILED_GENERATIONS} generations in a row had no finite value; the last reason was: "
                f"{batch[-1].evaluation.error}. Every evaluation is recorded in {self.journal.trajectory.folder}."
            )
        if not self.generations:
            self._tell(batch, [])
        progress.generation += 1
        self._told = False  # in generations, the driver's state is that before this one

    def _score(self, number: int) -> None:
        """Ask for the select score of the candidate of a record."""
        vector = self.journal.trajectory.records[number].vector
        assert vector is not None, "a candidate has its vector"
        self.outstanding.add(Asked("select", Candidate(vector), number))
        self.progress.unscored = None

    def _selected(self, asked: Asked, place: int | None, make: Callable[[], Evaluation]) -> str | None:
        """Record a select score and note whether it is the best; what it says of a collapse."""
        progress, driver, vector = self.progress, self.driver, asked.candidate.vector
        found = self.journal.trajectory.records[asked.number]
        record, evaluation = self.journal.next(
            "select",
            driver=driver.name,
            split="select",
            vector=vector,
            make=make,
            generation=found.generation,
            asked=place,
        )
        self._note_time()
        alarm = told_collapse(record, self.collapse)
        # Where a stage starts is what it is compared with, and no attempt to be better.
        attempt = found.generation > 0 or not np.array_equal(vector, driver.variables.start)
        competes = alarm is None and not evaluation.failed
        note_select(progress, record.id, evaluation.value if competes else None, attempt=attempt)
        return alarm

    def _note_time(self) -> None:
        self.progress.seconds = self._recorded() - self._begun

    def _recorded(self) -> float:
        """Seconds of work up to the last record."""
        return self.journal.trajectory.records[self.journal.cursor - 1].elapsed if self.journal.cursor else 0.0

    def _save_if_due(self) -> None:
        """Save where driver and records agree: the driver was told of all that is recorded, and all that it was told.

        The select scores of generations that it was told of are among the latter.
        """
        agree = self._told and not self._batch and self.outstanding.fits == len(self.outstanding)
        if self.generations and agree and time.perf_counter() - self._last_save > SAVE_SECONDS:
            self._save()

    def _save(self) -> None:
        self.store.save(self.journal.cursor, self.driver.state_dict(), asdict(self.progress))
        self._last_save = time.perf_counter()


def _driver_stop(driver: Driver) -> str | None:
    reasons = driver.stop()
    if not reasons:
        return None
    return f"{driver.name} stopped by itself: " + "; ".join(f"{name} {why}".strip() for name, why in reasons.items())
