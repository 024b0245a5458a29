"""The books of an executor with workers: what waits, who works on what, what is tried again, what is given up.

It starts no process and looks at no clock: executors tell it what happens, and ask it what is next.

    dispatch = Dispatch(retries=2)
    handle = dispatch.submit(job)
    taken = dispatch.take(worker=0)                  # (handle, job), or None
    dispatch.done(handle, 0, evaluation, seconds)    # or: dispatch.lost(handle, 0, "the worker died", seconds)
    dispatch.finished.popleft()
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

from optmerge.records import Evaluation
from optmerge.runner.executor import Finished, Job

log = logging.getLogger(__name__)


@dataclass
class _Entry:
    job: Job
    attempts: int = 0
    failed_on: set[int] = field(default_factory=set)


class Dispatch:
    """Which job goes to which worker, and how often.

    A job that a worker could not finish (it died, hung, was lost, or ran out of memory) goes before all others, to
    another worker where there is one, up to ``retries`` times. Then it is reported as failed.

    Args:
        retries: Tries after the first.

    Attributes:
        finished: What ended and was not reported yet, in the order in which it ended.

    >>> import numpy as np
    >>> from optmerge.records import Candidate
    >>> dispatch = Dispatch(retries=1)
    >>> handle = dispatch.submit(Job("fit", Candidate(np.zeros(1))))
    >>> _ = dispatch.take(0), dispatch.lost(handle, 0, "worker 0 died", 0.5)
    >>> dispatch.take(0, alive=(0, 1)) is None, dispatch.take(1, alive=(0, 1))[0]
    (True, 0)
    >>> dispatch.lost(handle, 1, "worker 1 died", 0.5)
    >>> dispatch.finished[0].error, dispatch.finished[0].attempts
    ('worker 1 died', 2)
    """

    def __init__(self, retries: int) -> None:
        self.retries = retries
        self.finished: deque[Finished] = deque()
        self._entries: dict[int, _Entry] = {}  # all that are not finished or cancelled
        self._waiting: deque[int] = deque()
        self._handles = 0

    @property
    def waiting(self) -> int:
        """Jobs that no worker has."""
        return len(self._waiting)

    @property
    def open(self) -> int:
        """Jobs that were neither reported nor cancelled, finished ones among them."""
        return len(self._entries) + len(self.finished)

    def submit(self, job: Job) -> int:
        """Take a job; its handle."""
        handle = self._handles
        self._handles += 1
        self._entries[handle] = _Entry(job)
        self._waiting.append(handle)
        return handle

    def take(self, worker: int, *, alive: Collection[int] = ()) -> tuple[int, Job] | None:
        """The next job for a worker that has none.

        Args:
            worker: Which one.
            alive: The workers that there are: what failed on this one is left to those on which it did not, if any.
        """
        for place, handle in enumerate(self._waiting):
            entry = self._entries[handle]
            if worker in entry.failed_on and not entry.failed_on.issuperset(alive):
                continue
            del self._waiting[place]
            entry.attempts += 1
            return handle, entry.job
        return None

    def done(self, handle: int, worker: int, evaluation: Evaluation, seconds: float) -> None:
        """A worker has evaluated a job, for better or worse; where memory ran out it is tried again."""
        entry = self._entries.get(handle)
        if entry is None:  # cancelled
            return
        if evaluation.starved and self._again(handle, entry, worker, evaluation.error or "memory ran out"):
            return
        del self._entries[handle]
        self.finished.append(Finished(handle, evaluation, None, seconds, worker, entry.attempts))

    def lost(self, handle: int, worker: int, why: str, seconds: float) -> None:
        """A worker will not finish a job any more.

        Args:
            handle: The job's.
            worker: Which one.
            why: What happened, a clause such as "worker 3 died of signal 9".
            seconds: How long it had the job.
        """
        entry = self._entries.get(handle)
        if entry is None or self._again(handle, entry, worker, why):
            return
        del self._entries[handle]
        self.finished.append(Finished(handle, None, why, seconds, worker, entry.attempts))

    def cancel(self, handle: int) -> None:
        """Neither begin nor report a job."""
        self._entries.pop(handle, None)
        self._waiting = deque(other for other in self._waiting if other != handle)
        self.finished = deque(entry for entry in self.finished if entry.handle != handle)

    def _again(self, handle: int, entry: _Entry, worker: int, why: str) -> bool:
        if entry.attempts > self.retries:
            return False
        log.warning("%s; its evaluation is tried again (%d of %d)", why, entry.attempts, self.retries)
        entry.failed_on.add(worker)
        self._waiting.appendleft(handle)
        return True
