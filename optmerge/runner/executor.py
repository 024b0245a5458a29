"""Where evaluations run: the seam between the loop and one process, several processes, or several machines.

The loop submits jobs and takes what has finished, in whatever order that is; it does not know who works.

    executor = InProcess(judge)
    handle = executor.submit(Job("fit", candidate))
    finished = executor.next_finished(timeout=None)
    finished.handle == handle, finished.outcome().value

What travels to a worker is a `Job` (a vector and what to look at), and what comes back an `Evaluation`; never weights.
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass
from typing import Literal, Protocol

from optmerge.records import Candidate, Evaluation, Vector


class Judge(Protocol):
    """Evaluates vectors, in the process that has the model."""

    def fit(self, candidate: Candidate) -> Evaluation:
        """The objective of a candidate on (its part of) the fit split, with what the candidate needs."""

    def select(self, vector: Vector) -> Evaluation:
        """The objective of a vector on the whole select split."""


@dataclass(frozen=True, slots=True)
class Job:
    """One evaluation to be made; small, and can be pickled.

    Attributes:
        split: Which split is looked at; of select always all of it.
        candidate: The vector, and on fit what is needed and which examples count.
    """

    split: Literal["fit", "select"]
    candidate: Candidate

    def run(self, judge: Judge) -> Evaluation:
        """What ``judge`` finds."""
        return judge.fit(self.candidate) if self.split == "fit" else judge.select(self.candidate.vector)


@dataclass(frozen=True, slots=True)
class Finished:
    """How a job ended.

    Attributes:
        handle: What `Executor.submit` gave for it.
        evaluation: What was found, a failure of the model included; None where no worker could say.
        error: Then why: the worker died, hung, or was lost, each time that it was tried.
        seconds: The worker's time for it, in the try that ended it.
        worker: Which worker that was, from 0.
        attempts: How often it was begun.
    """

    handle: int
    evaluation: Evaluation | None
    error: str | None
    seconds: float
    worker: int
    attempts: int = 1

    def outcome(self) -> Evaluation:
        """The evaluation; a failed one with its reason where no worker could say."""
        if self.evaluation is not None:
            return self.evaluation
        times = "once" if self.attempts == 1 else f"{self.attempts} times"
        return Evaluation(math.nan, error=f"{self.error} (tried {times})")


class Executor(Protocol):
    """Has jobs done. It retries what a worker could not finish, and never reports a job twice.

    Attributes:
        workers: How many evaluations run at the same time.
    """

    workers: int

    def submit(self, job: Job) -> int:
        """Take a job and give its handle, another one each time; never blocks."""

    def next_finished(self, timeout: float | None) -> Finished | None:
        """A job that ended since, in the order in which they end.

        Args:
            timeout: Seconds to wait at most; None waits until a job ends.

        Returns:
            None when nothing ended in time, or nothing is submitted that has not been reported or cancelled.

        Raises:
            OptmergeError: An evaluation showed a mistake of the user's, as it would have in this process.
        """

    def cancel(self, handle: int) -> None:
        """The job is not wanted any more: it is not begun, and never reported; one that runs may run to its end."""

    def close(self) -> None:
        """End all workers; nothing can be submitted afterwards. May be called twice."""


class InProcess:
    """One worker, which is this process: a job runs when it is asked for, in the order of submission.

    >>> class Constant:
    ...     def fit(self, candidate):
    ...         return Evaluation(0.5)
    >>> import numpy as np
    >>> executor = InProcess(Constant())
    >>> executor.submit(Job("fit", Candidate(np.zeros(2)))), executor.submit(Job("fit", Candidate(np.ones(2))))
    (0, 1)
    >>> executor.next_finished(None).outcome().value, executor.next_finished(0.0).handle, executor.next_finished(None)
    (0.5, 1, None)
    """

    workers = 1

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._waiting: deque[tuple[int, Job]] = deque()
        self._handles = 0

    def submit(self, job: Job) -> int:  # noqa: D102 - as the protocol says
        self._waiting.append((self._handles, job))
        self._handles += 1
        return self._handles - 1

    def next_finished(self, timeout: float | None) -> Finished | None:
        """Run the first job that waits, however long it takes."""
        if not self._waiting:
            return None
        handle, job = self._waiting.popleft()
        begun = time.perf_counter()
        evaluation = job.run(self._judge)
        return Finished(handle, evaluation, None, time.perf_counter() - begun, worker=0)

    def cancel(self, handle: int) -> None:  # noqa: D102
        self._waiting = deque(entry for entry in self._waiting if entry[0] != handle)

    def close(self) -> None:  # noqa: D102
        self._waiting.clear()
