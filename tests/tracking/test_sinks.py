"""No view can hurt a search: it may raise, block or crawl."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

from optmerge.records import Record
from optmerge.tracking.sinks import BackgroundSink, SafeSinks


def _record(number: int = 0) -> Record:
    return Record(id=number, phase="search", driver="cma", split="fit", value=1.0)


class Spy:
    """Notes what it is told; raises in the methods named in ``bad``."""

    label = "the spy"

    def __init__(self, *bad: str, error: BaseException | None = None) -> None:
        self.bad, self.error, self.heard = bad, error or OSError("no network"), []

    def _hear(self, what: str, *facts: object) -> None:
        self.heard.append((what, *facts))
        if what in self.bad:
            raise self.error

    def start(self, run: Path) -> None:
        self._hear("start")

    def record(self, record: Record) -> None:
        self._hear("record", record.id)

    def progress(self, stage: str, done: int, total: int | None) -> None:
        self._hear("progress", stage)

    def finish(self, run: Path, reason: str) -> None:
        self._hear("finish", reason)


def _whole_run(sink, count: int = 3) -> None:
    sink.start(Path())
    sink.progress("teachers", 1, 2)
    for number in range(count):
        sink.record(_record(number))
    sink.finish(Path(), "done")


@pytest.mark.parametrize("method", ["start", "record", "progress", "finish"])
@pytest.mark.parametrize("background", [False, True])
def test_a_failing_sink_warns_once_and_the_others_hear_everything(
    method: str, background: bool, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = Spy(method), Spy()
    _whole_run(SafeSinks([BackgroundSink(bad) if background else bad, good]))
    assert [what for what, *_ in good.heard] == ["start", "progress", "record", "record", "record", "finish"]
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "the spy FAILED" in warnings[0].getMessage()
    assert "no network" in warnings[0].getMessage()
    assert [what for what, *_ in bad.heard].count(method) == 1


def test_a_failed_sink_is_no_longer_active() -> None:
    bad, good = Spy("record"), Spy()
    sinks = SafeSinks([bad, good])
    sinks.record(_record())
    assert sinks.active == (good,)


def test_an_interrupt_by_the_user_goes_through() -> None:
    with pytest.raises(KeyboardInterrupt):
        SafeSinks([Spy("record", error=KeyboardInterrupt())]).record(_record())


def test_a_tracker_that_exits_does_not_end_the_search(caplog: pytest.LogCaptureFixture) -> None:
    _whole_run(BackgroundSink(Spy("start", error=SystemExit(1))))
    assert "SystemExit" in caplog.text


def test_background_keeps_the_order() -> None:
    spy = Spy()
    _whole_run(BackgroundSink(spy), count=50)
    assert [fact for what, fact in (e for e in spy.heard if len(e) == 2) if what == "record"] == list(range(50))


class Stuck(Spy):
    """Blocks in start until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def start(self, run: Path) -> None:
        self.gate.wait()


def test_a_stuck_sink_neither_blocks_the_loop_nor_the_end(caplog: pytest.LogCaptureFixture) -> None:
    stuck = Stuck()
    sink = BackgroundSink(stuck, capacity=5, patience=0.05)
    _whole_run(sink, count=100)
    stuck.gate.set()
    messages = [record.getMessage() for record in caplog.records]
    assert sum("TOO SLOW" in message for message in messages) == 1
    assert sum("NOT DONE" in message for message in messages) == 1


def test_events_before_start_and_after_a_failure_are_nothing() -> None:
    spy = Spy("start")
    sink = BackgroundSink(spy)
    sink.record(_record())
    sink.progress("teachers", 1, 2)
    sink.finish(Path(), "done")
    assert spy.heard == []
