"""Executors whose evaluations are made-up functions that take made-up times: on a simulated clock, or asleep.

    executor = SimulatedWorkers(Judge(24), workers=16, seconds=heavy_tail(seed=0))
    outcome = run_loop(driver, executor, journal, budget, store, deterministic=False)
    executor.idle()

The simulated clock stands still while nobody waits, but for the processor time that driver and loop take: that is real,
and added to it as it passes. Waiting for the disk is not, so that other programs on the machine do not change it.
"""

from __future__ import annotations

import heapq
import itertools
import math
import queue
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from optmerge.records import Candidate, Evaluation, Vector
from optmerge.runner.executor import Finished, Job


class Judge:
    """An ellipsoid of d variables, the longest axis ten times the shortest, away from the start in all of them."""

    def __init__(self, dimension: int) -> None:
        self.weights = np.logspace(0.0, 2.0, dimension)
        self.optimum = 0.3 + 0.3 * np.cos(np.arange(dimension))

    def fit(self, candidate: Candidate) -> Evaluation:
        """The mean weighted square of the distance."""
        return Evaluation(float(self.weights @ (candidate.vector - self.optimum) ** 2) / len(self.weights))

    def select(self, vector: Vector) -> Evaluation:
        """The same."""
        return self.fit(Candidate(vector))


def heavy_tail(seed: int, *, median: float, sigma: float) -> Callable[[], float]:
    """Draws seconds from a log-normal distribution: with ``sigma`` 1, one in a hundred takes ten times the median."""
    generator = np.random.default_rng(seed)
    return lambda: float(generator.lognormal(math.log(median), sigma))


class Spans:
    """When evaluations began and ended."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []

    def add(self, begun: float, ended: float) -> None:
        """Note one."""
        self._spans.append((begun, ended))

    def took(self) -> float:
        """Seconds from the first begin to the last end."""
        return max(end for _, end in self._spans) - min(begin for begin, _ in self._spans)

    def idle(self, workers: int, *, whole: bool = True) -> float:
        """The share of the workers' time in which they evaluated nothing.

        Args:
            workers: How many.
            whole: Up to the last end; else up to the last moment at which all of them were busy, after which there was
                less left to do than there are workers.
        """
        first = min(begin for begin, _ in self._spans)
        last = max(end for _, end in self._spans) if whole else self._last_full(workers)
        busy = sum(max(0.0, min(end, last) - begin) for begin, end in self._spans)
        return 1.0 - busy / (workers * (last - first))

    def _last_full(self, workers: int) -> float:
        moments = sorted([(begin, 1) for begin, _ in self._spans] + [(end, -1) for _, end in self._spans])
        running = itertools.accumulate(change for _, change in moments)
        full = [number for number, count in enumerate(running) if count == workers]
        return moments[full[-1] + 1][0]


class SimulatedWorkers:
    """Workers on a simulated clock.

    Attributes:
        now: Seconds since the first submission.
        spans: Of the evaluations.
        loop: Seconds of processor time between the calls of this class: what driver, loop and trajectory took.
    """

    def __init__(self, judge: Judge, *, workers: int, seconds: Callable[[], float]) -> None:
        self.workers = workers
        self.now = self.loop = 0.0
        self.spans = Spans()
        self._judge = judge
        self._seconds = seconds
        self._waiting: deque[tuple[int, Job]] = deque()
        self._running: list[tuple[float, int, Job, float]] = []
        self._cancelled: set[int] = set()
        self._handles = itertools.count()
        self._left: float | None = None  # when the last call returned

    def submit(self, job: Job) -> int:
        """Begin a job, or let it wait."""
        self._enter()
        handle = next(self._handles)
        self._waiting.append((handle, job))
        self._begin()
        self._left = time.process_time()
        return handle

    def next_finished(self, timeout: float | None) -> Finished | None:
        """Go to when the next job ends."""
        self._enter()
        finished = None
        while self._running and finished is None:
            end, handle, job, seconds = heapq.heappop(self._running)
            self.now = max(self.now, end)
            self.spans.add(end - seconds, end)
            if handle not in self._cancelled:
                finished = Finished(handle, job.run(self._judge), None, seconds, worker=0)
            self._begin()
        self._left = time.process_time()
        return finished

    def cancel(self, handle: int) -> None:
        """Not begin, or not report, a job."""
        self._cancelled.add(handle)
        self._waiting = deque(entry for entry in self._waiting if entry[0] != handle)

    def close(self) -> None:
        """Nothing is left to end."""

    def _enter(self) -> None:
        if self._left is not None:
            passed = time.process_time() - self._left
            self.loop += passed
            self.now += passed

    def _begin(self) -> None:
        while self._waiting and len(self._running) < self.workers:
            handle, job = self._waiting.popleft()
            seconds = self._seconds()
            heapq.heappush(self._running, (self.now + seconds, handle, job, seconds))


class SleepingWorkers:
    """Threads that sleep for the time that an evaluation takes."""

    def __init__(self, judge: Judge, *, workers: int, seconds: Callable[[], float]) -> None:
        self.workers = workers
        self.spans = Spans()
        self._judge = judge
        self._seconds = seconds
        self._pool = ThreadPoolExecutor(workers)
        self._ended: queue.SimpleQueue[Finished] = queue.SimpleQueue()
        self._cancelled: set[int] = set()
        self._handles = itertools.count()

    def submit(self, job: Job) -> int:
        """Begin a job as soon as a thread is free."""
        handle = next(self._handles)
        self._pool.submit(self._work, handle, job, self._seconds())
        return handle

    def next_finished(self, timeout: float | None) -> Finished | None:
        """The next job that ends."""
        while True:
            try:
                finished = self._ended.get(timeout=timeout)
            except queue.Empty:
                return None
            if finished.handle not in self._cancelled:
                return finished

    def cancel(self, handle: int) -> None:
        """Not report a job."""
        self._cancelled.add(handle)

    def close(self) -> None:
        """Wait for the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _work(self, handle: int, job: Job, seconds: float) -> None:
        begun = time.perf_counter()
        time.sleep(seconds)
        evaluation = job.run(self._judge)
        ended = time.perf_counter()
        self.spans.add(begun, ended)
        self._ended.put(Finished(handle, evaluation, None, ended - begun, worker=0))
