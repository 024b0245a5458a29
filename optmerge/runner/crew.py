"""The crew: an executor whose jobs are done by workers elsewhere, which may die, hang or be lost.

It knows neither processes nor machines: a `Transport` starts workers and passes messages.

    crew = Crew(LocalWorkers(spec, workers=2), workers=2, timeout=600.0, retries=2)
    crew.use(context)
    handle = crew.submit(job)
    finished = crew.next_finished(timeout=None)
    crew.close()

Workers are started by the first job that is submitted. What all jobs share (the *context*) is sent to a worker once,
and again only when it has changed or the worker was started anew.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from optmerge.errors import OptmergeError, RunFailed
from optmerge.records import Evaluation
from optmerge.runner.dispatch import Dispatch
from optmerge.runner.executor import Finished, Job

log = logging.getLogger(__name__)

STARTS = 3  # so often a worker may be lost in a row before it has done anything; then it is given up
PATIENCE = 60.0  # seconds without any worker after which that is said


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker is sent: a job, and the context where the worker does not know it yet."""

    job: Job
    context: Any = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What a worker answers: what it found, or the mistake of the user's that it met; and the seconds that it took."""

    found: Evaluation | OptmergeError
    seconds: float


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker has opened everything and waits for work."""

    worker: int


@dataclass(frozen=True, slots=True)
class Replied:
    """A worker has answered its order."""

    worker: int
    reply: Reply


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker is gone: ``reason`` in words; ``mistake`` where it could not begin because of one of the user's."""

    worker: int
    reason: str
    mistake: OptmergeError | None = None


Event = Ready | Replied | Lost


class Transport(Protocol):
    """Starts workers, and passes messages to and from them."""

    def start(self, worker: int) -> None:
        """Begin to start a worker, which becomes `Ready` or `Lost`; the one before it with this number is gone."""

    def send(self, worker: int, order: Order) -> None:
        """Send an order to a worker that waits for one. A worker that is gone is reported by `wait`."""

    def kill(self, worker: int) -> None:
        """End a worker, whatever it does; nothing more is heard of it."""

    def wait(self, timeout: float | None) -> Sequence[Event]:
        """What has happened, as soon as anything has; nothing when ``timeout`` seconds have passed."""

    def close(self) -> None:
        """End all workers. May be called twice."""


@dataclass(eq=False)
class _Worker:
    ready: bool = False
    handle: int | None = None  # of what it works on
    begun: float = 0.0
    known: Any = None  # the context that it was sent
    failed_starts: int = 0
    given_up: bool = False


class Crew:
    """An executor over workers that may be lost.

    Args:
        transport: Where the workers are.
        workers: How many.
        timeout: Seconds after which an evaluation counts as hung and its worker is replaced; None is never. What a
            worker needs to start does not count.
        retries: How often a job is tried again.
        clock: Seconds.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        workers: int,
        timeout: float | None = None,
        retries: int = 2,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.workers = workers
        self._transport = transport
        self._timeout = timeout
        self._clock = clock
        self._crew = [_Worker() for _ in range(workers)]
        self._jobs = Dispatch(retries)
        self._context: Any = None
        self._started = False
        self._heard = clock()  # when a worker was last there
        self._last_loss = ""

    def use(self, context: Any) -> None:
        """Set what all jobs that begin from now on share; it is told from others by identity, and can be pickled."""
        self._context = context

    def submit(self, job: Job) -> int:
        """Take a job and give its handle; never blocks on a worker."""
        if not self._started:
            self._started = True
            self._heard = self._clock()
            for number in range(self.workers):
                self._transport.start(number)
        handle = self._jobs.submit(job)
        self._hand_out()
        return handle

    def next_finished(self, timeout: float | None) -> Finished | None:
        """A job that ended, in the order in which they end.

        Args:
            timeout: Seconds to wait at most; None waits as long as anything is wanted.

        Raises:
            OptmergeError: A worker met a mistake of the user's.
            RunFailed: No worker can be started any more.
        """
        until = None if timeout is None else self._clock() + timeout
        while not self._jobs.finished:
            if not self._jobs.open:
                return None
            for event in self._transport.wait(self._patience(until)):
                self._note(event)
            self._end_hung()
            self._hand_out()
            self._say_if_alone()
            if not self._jobs.finished and until is not None and self._clock() >= until:
                return None
        return self._jobs.finished.popleft()

    def cancel(self, handle: int) -> None:
        """A job that is not wanted any more: not begun, and not reported; one that runs may run to its end."""
        self._jobs.cancel(handle)

    def close(self) -> None:
        """End all workers."""
        self._transport.close()

    def _patience(self, until: float | None) -> float | None:
        """Seconds to wait for an event: until somebody gives up waiting, or a worker counts as hung."""
        moments = [] if until is None else [until]
        if self._timeout is not None:
            moments += [worker.begun + self._timeout for worker in self._crew if worker.handle is not None]
        if not any(worker.ready for worker in self._crew):
            moments.append(self._heard + PATIENCE)
        return max(0.0, min(moments) - self._clock()) if moments else None

    def _note(self, event: Event) -> None:
        worker = self._crew[event.worker]
        if isinstance(event, Lost):
            if event.mistake is not None:
                raise event.mistake
            self._replace(event.worker, event.reason)
            return
        worker.ready = True
        self._heard = self._clock()
        if isinstance(event, Replied):
            handle, worker.handle, worker.failed_starts = worker.handle, None, 0
            if isinstance(event.reply.found, OptmergeError):
                raise event.reply.found
            assert handle is not None, "a worker answers what it was sent"
            self._jobs.done(handle, event.worker, event.reply.found, event.reply.seconds)

    def _end_hung(self) -> None:
        for number, worker in enumerate(self._crew):
            if worker.handle is None or self._timeout is None:
                continue
            if self._clock() - worker.begun >= self._timeout:
                self._transport.kill(number)
                self._replace(
                    number,
                    f"worker {number} took longer than {self._timeout:g} seconds for an evaluation and was ended",
                )

    def _replace(self, number: int, reason: str) -> None:
        """Start a worker anew; what it was at is tried again, or given up."""
        worker = self._crew[number]
        handle, seconds = worker.handle, self._clock() - worker.begun
        worker.failed_starts = 0 if worker.ready and handle is not None else worker.failed_starts + 1
        worker.ready, worker.handle, worker.known = False, None, None
        self._last_loss = reason
        if worker.failed_starts < STARTS:
            log.info("%s; it is started anew", reason)
            self._transport.start(number)
        else:
            worker.given_up = True
            log.warning("%s; it is given up after %d starts", reason, STARTS)
        if handle is not None:
            self._jobs.lost(handle, number, reason, seconds)
        if all(other.given_up for other in self._crew):
            raise RunFailed(
                f"No worker can be started; each was lost {STARTS} times in a row before it had done anything. "
                f"The last reason was: {reason}."
            )

    def _hand_out(self) -> None:
        alive = [number for number, worker in enumerate(self._crew) if not worker.given_up]
        for number, worker in enumerate(self._crew):
            if not worker.ready or worker.handle is not None:
                continue
            taken = self._jobs.take(number, alive=alive)
            if taken is None:
                continue
            worker.handle, job = taken
            worker.begun = self._clock()
            known, worker.known = worker.known, self._context
            self._transport.send(number, Order(job, None if known is self._context else self._context))

    def _say_if_alone(self) -> None:
        now = self._clock()
        if any(worker.ready for worker in self._crew):
            self._heard = now
        elif now - self._heard >= PATIENCE:
            self._heard = now
            why = f" The last one was lost: {self._last_loss}." if self._last_loss else ""
            log.warning("no worker has been there for %d seconds; the search waits for one.%s", int(PATIENCE), why)
