"""What stands between the loop and its views, so that no view can hurt a search.

    safe = SafeSinks([TerminalSink(), BackgroundSink(TrackerSink(tracker))])

`SafeSinks` disables a sink that raises, with one loud warning. `BackgroundSink` moves a sink that may be slow (network,
locks) to a thread of its own behind a bounded queue that never makes the loop wait.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from optmerge.records import Record, Sink

log = logging.getLogger(__name__)


def sink_name(sink: Sink) -> str:
    """What messages call a sink."""
    return str(getattr(sink, "label", type(sink).__name__))


def _remedy(sink: Sink) -> str:
    """What a user does about a sink that has failed, where it says so."""
    remedy = str(getattr(sink, "remedy", ""))
    return remedy and f" {remedy}"


class SafeSinks:
    """Feeds several sinks; one that raises is warned about once and left out from then on.

    >>> from optmerge.records import Record
    >>> sinks = SafeSinks([])
    >>> sinks.record(Record(id=0, phase="search", driver="cma", split="fit", value=1.0))
    """

    label = "views"

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = list(sinks)

    @property
    def active(self) -> tuple[Sink, ...]:
        """The sinks that have not failed."""
        return tuple(self._sinks)

    def start(self, run: Path) -> None:
        """Tell every sink that the run directory exists."""
        self._each(lambda sink: sink.start(run))

    def record(self, record: Record) -> None:
        """Give every sink a record."""
        self._each(lambda sink: sink.record(record))

    def progress(self, stage: str, done: int, total: int | None) -> None:
        """Tell every sink of long work."""
        self._each(lambda sink: sink.progress(stage, done, total))

    def finish(self, run: Path, reason: str) -> None:
        """Tell every sink that the run ended."""
        self._each(lambda sink: sink.finish(run, reason))

    def _each(self, call: Callable[[Sink], None]) -> None:
        for sink in tuple(self._sinks):
            try:
                call(sink)
            except Exception as problem:
                self._sinks.remove(sink)
                warn_disabled(sink, problem)


def warn_disabled(sink: Sink, problem: BaseException) -> None:
    """The one warning about a failed sink."""
    what = " ".join(str(problem).split()) or type(problem).__name__
    log.warning(
        "%s FAILED AND IS SWITCHED OFF: %s: %s. The search goes on; its trajectory is complete without it.%s",
        sink_name(sink),
        type(problem).__name__,
        what,
        _remedy(sink),
    )
    log.debug("the failure of %s in full", sink_name(sink), exc_info=problem)


class BackgroundSink:
    """Feeds ``sink`` from a thread of its own.

    A full queue drops the event, with one warning; sinks that are used here read the trajectory in ``finish`` and make
    up for what they missed. A sink that raises is switched off with one warning; one that has an ``abandon`` is then
    asked, in its own thread, to let go of what it holds open. Nobody waits for that.

    Args:
        sink: What is fed.
        capacity: Events that may wait.
        patience: Seconds that ``finish`` waits for the sink to be done.
    """

    def __init__(self, sink: Sink, *, capacity: int = 10_000, patience: float = 60.0) -> None:
        self.sink = sink
        self.label = sink_name(sink)
        self.patience = patience
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(capacity)
        self._thread: threading.Thread | None = None
        self._failed = threading.Event()
        self._left = threading.Event()  # said to be not done
        self._warned = False

    def start(self, run: Path) -> None:
        """Start the thread, and the sink in it."""
        self._thread = threading.Thread(target=self._work, name=f"optmerge {self.label}", daemon=True)
        self._thread.start()
        self._put(lambda: self.sink.start(run))

    def record(self, record: Record) -> None:
        """Queue a record."""
        self._put(lambda: self.sink.record(record))

    def progress(self, stage: str, done: int, total: int | None) -> None:
        """Queue a sign of progress."""
        self._put(lambda: self.sink.progress(stage, done, total))

    def finish(self, run: Path, reason: str) -> None:
        """Finish the sink; wait for it, but only so long."""
        if self._thread is None or self._failed.is_set():
            return

        def work() -> None:
            self.sink.finish(run, reason)

        deadline = time.monotonic() + self.patience
        for event in (work, None):
            try:
                self._queue.put(event, timeout=max(0.0, deadline - time.monotonic()))
            except queue.Full:
                break
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._left.set()
            log.warning(
                "%s IS NOT DONE after %g seconds and is left behind. The run itself is complete in %s.%s",
                self.label,
                self.patience,
                run,
                _remedy(self.sink),
            )

    def _put(self, event: Callable[[], None]) -> None:
        if self._thread is None or self._failed.is_set():
            return
        try:
            self._queue.put_nowait(event)
        except queue.Full:
            if not self._warned:
                self._warned = True
                log.warning(
                    "%s IS TOO SLOW for this search: %d events wait. It skips some now and catches up from the "
                    "trajectory at the end; the search does not wait.",
                    self.label,
                    self._queue.maxsize,
                )

    def _work(self) -> None:
        while (event := self._queue.get()) is not None:
            try:
                event()
            except BaseException as problem:  # a tracker's SystemExit must not end the thread silently either
                self._failed.set()
                if self._left.is_set():  # the user knows already
                    log.debug("the failure of %s in full", self.label, exc_info=problem)
                else:
                    warn_disabled(self.sink, problem)
                self._abandon()
                return

    def _abandon(self) -> None:
        abandon: Callable[[], None] | None = getattr(self.sink, "abandon", None)
        if abandon is None:
            return
        try:
            abandon()
        except BaseException as problem:  # the user knows already that it has failed
            log.debug("%s does not let go", self.label, exc_info=problem)
