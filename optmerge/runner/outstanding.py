"""What a search has asked for and not recorded yet: evaluations that wait, run, or are in the trajectory already.

    outstanding = Outstanding(executor, journal, in_order=True)
    outstanding.add(Asked("fit", candidate, number=0))
    asked, place, make = outstanding.next(stop)      # for `Journal.next`, which calls make() if it has no such record
    outstanding.idle()                               # the share of the workers' time in which nothing was evaluated

In order, evaluations are handed out as they were asked for, whoever is done first, so that the trajectory is that of
one worker. Otherwise they are handed out as they end, and the records say at which place each was asked for: after a
resume the recorded ones come in the order of the records, and what was out when the process ended is submitted again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from optmerge.errors import RunError, RunInterrupted
from optmerge.records import Candidate, Evaluation
from optmerge.runner.executor import Executor, Finished, Job
from optmerge.runner.journal import Journal

POLL = 0.2  # seconds between two looks at whether the user wants to stop


@dataclass(frozen=True, slots=True)
class Asked:
    """An evaluation that was asked for.

    Attributes:
        split: What is looked at.
        candidate: The vector and its examples.
        number: Of a candidate, its place among the driver's; of a select score, the record of the candidate.
    """

    split: Literal["fit", "select"]
    candidate: Candidate
    number: int


class Outstanding:
    """A queue over the recorded part of a search and an executor.

    Args:
        executor: Where evaluations are made; it is given none while recorded ones are left.
        journal: Says what is recorded.
        in_order: Whether evaluations are handed out as they were asked for.

    Attributes:
        fits: How many candidates are out.
    """

    def __init__(self, executor: Executor, journal: Journal, *, in_order: bool) -> None:
        self.fits = 0
        self._executor = executor
        self._journal = journal
        self._in_order = in_order
        self._open: dict[int, Asked] = {}  # by place among all that was asked for, in that order
        self._places = 0
        self._unsubmitted: deque[int] = deque()
        self._handles: dict[int, int] = {}  # of what is submitted: handle -> place
        self._ended: dict[int, Finished] = {}  # by place, what ended before its turn
        self._busy = 0.0
        self._began: float | None = None
        self._latest = 0.0

    def __len__(self) -> int:
        return len(self._open)

    def add(self, asked: Asked) -> None:
        """Ask for one more."""
        self._open[self._places] = asked
        self._unsubmitted.append(self._places)
        self._places += 1
        self.fits += asked.split == "fit"

    def next(self, stop: Callable[[], str | None]) -> tuple[Asked, int, Callable[[], Evaluation]]:
        """The next evaluation to be recorded: what was asked, at which place, and how to get it if it is not recorded.

        Args:
            stop: Asked from time to time while nothing ends.

        Raises:
            RunInterrupted: ``stop`` gave a reason.
            RunError: The next record belongs to nothing that was asked for.
        """
        recorded = self._journal.upcoming()
        if recorded is None:
            self._submit()
        if self._in_order:
            place = next(iter(self._open))
        elif recorded is None:
            place = next(iter(self._ended)) if self._ended else self._wait(stop)
        elif recorded.asked is not None and recorded.asked in self._open:
            place = recorded.asked
        else:
            raise RunError(
                f"{self._journal.trajectory.folder}: evaluation {recorded.id} in the trajectory was asked for at place "
                f"{recorded.asked}, and the search has nothing out there. Its settings, seed, number of workers or "
                "libraries have changed since; start a new run in another folder."
            )
        asked = self._open.pop(place)
        self.fits -= asked.split == "fit"
        return asked, place, partial(self._outcome, place, stop)

    def drop(self, split: str | None = None) -> None:
        """Let go of all that is out, or of that on one split: it will not be recorded."""
        dropped = {place for place, asked in self._open.items() if split in (None, asked.split)}
        for handle, place in list(self._handles.items()):
            if place in dropped:
                self._executor.cancel(handle)
                del self._handles[handle]
        for place in dropped:
            self.fits -= self._open.pop(place).split == "fit"
            self._ended.pop(place, None)

    def idle(self) -> float | None:
        """The share of the workers' time, from the first submission to the last end, in which nothing was evaluated."""
        if self._began is None or self._latest <= self._began:
            return None
        return max(0.0, 1.0 - self._busy / (self._executor.workers * (self._latest - self._began)))

    def _submit(self) -> None:
        """Give the executor what nobody has recorded."""
        while self._unsubmitted:
            place = self._unsubmitted.popleft()
            asked = self._open.get(place)
            if asked is not None:  # else it was recorded, or dropped
                self._began = self._began or time.perf_counter()
                self._handles[self._executor.submit(Job(asked.split, asked.candidate))] = place

    def _outcome(self, place: int, stop: Callable[[], str | None]) -> Evaluation:
        while place not in self._ended:
            self._wait(stop)
        return self._ended.pop(place).outcome()

    def _wait(self, stop: Callable[[], str | None]) -> int:
        """The place of what ends next."""
        while (finished := self._executor.next_finished(POLL)) is None:
            why = stop()
            if why:
                raise RunInterrupted(why)
        self._busy += finished.seconds
        self._latest = time.perf_counter()
        place = self._handles.pop(finished.handle)
        self._ended[place] = finished
        return place
