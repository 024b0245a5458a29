"""A run on the terminal: bars for long work, then where the search stands. On stderr; plain lines in a pipe.

    sink = TerminalSink()
    sink.start(run); sink.record(record); sink.finish(run, reason)

Colours follow the terminal and NO_COLOR.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from optmerge.records import EvaluationCount, Record
from optmerge.runner.alarms import COLLAPSE
from optmerge.runner.folder import RunFolder
from optmerge.tracking.markdown import number
from optmerge.tracking.view import RunView

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

PLAIN_SECONDS = 10.0  # between two plain lines, unless there is news
_RECENT = 20  # evaluations that the rate is measured over


class TerminalSink:
    """Shows a run while it is made.

    Args:
        console: Where to; a console on stderr when not given. Whoever logs to the terminal should log to the same one.
        clock: Seconds from any start.
    """

    label = "the terminal display"

    def __init__(self, console: Console | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._console = console or Console(file=sys.stderr, highlight=False)
        self._clock = clock
        self._live: Live | None = None
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
        )
        self._tasks: dict[str, object] = {}
        self._shares: dict[str, int] = {}
        self._said = float("-inf")
        self._ticks: deque[tuple[float, float]] = deque(maxlen=_RECENT)  # evaluations made, and when
        self._evaluations = 0
        self._count = EvaluationCount()
        self._failed = 0
        self._value: float | None = None
        self._best: float | None = None
        self._baseline: tuple[str, float] | None = None
        self._limit: int | None = None
        self._minutes: float | None = None
        self._elapsed = 0.0
        self._begun: float | None = None
        self._alarms: dict[str, str] = {}
        self._stage = 0
        self._collapsed = False  # whether an iterate that has collapsed may be the best

    def start(self, run: Path) -> None:
        """Take over what an interrupted run has done already."""
        view = RunView.open(run, vectors=False)
        self._limit = view.budget.get("evaluations")
        self._minutes = view.budget.get("minutes")
        self._collapsed = view.collapsed
        for record in view.records:
            self._take(record)
        self._ticks.clear()
        if view.evaluations:
            self._say(f"{view.name}: going on after {view.evaluations} evaluations")

    def record(self, record: Record) -> None:
        """Show a record."""
        known = set(self._alarms)
        news = self._take(record)
        for kind in self._alarms.keys() - known:
            self._say(f"ALARM ({kind}): {self._alarms[kind]}")
        if self._console.is_terminal:
            self._show()
        elif record.phase != "baseline" and (news or self._clock() - self._said >= PLAIN_SECONDS):
            self._say(self.line())

    def progress(self, stage: str, done: int, total: int | None) -> None:
        """Show long work outside the trajectory."""
        if self._console.is_terminal:
            self._show()
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total)
            self._bars.update(self._tasks[stage], completed=done, total=total)  # type: ignore[arg-type]
            return
        share = 10 * done // total if total else 0
        if self._shares.get(stage) != share:
            self._shares[stage] = share
            self._say(f"{stage}: {done}/{total}" if total else f"{stage}: {done}")

    def finish(self, run: Path, reason: str) -> None:
        """Leave the last state on the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if not self._console.is_terminal and self._evaluations:
            self._say(self.line())
        self._say(f"stopped: {reason}" if reason else "stopped")
        workers = (RunFolder(run).read_json("result.json") or {}).get("workers")
        if workers is not None and workers["idle"] is not None:
            self._say(f"{workers['count']} workers, which evaluated nothing for {workers['idle']:.0%} of their time")

    def line(self) -> str:
        """Where the search stands, in one line."""
        done = f"{self._evaluations}/{self._limit}" if self._limit else str(self._evaluations)
        parts = [f"evaluations {done}"]
        if self._stage:
            parts.append(f"stage {self._stage + 1}")
        if self._best is not None:
            parts.append(f"best select {number(self._best)}")
        if self._value is not None:
            parts.append(f"fit {number(self._value)}")
        if self._baseline is not None:
            parts.append(f"best baseline {number(self._baseline[1])} ({self._baseline[0]})")
        rate = self._rate()
        if rate is not None:
            parts.append(f"{rate:.2f}/s" if rate >= 1 else f"{1 / rate:.1f} s each")
        left = self._seconds_left(rate)
        if left is not None:
            parts.append(f"about {duration(left)} left")
        if self._failed:
            parts.append(f"{self._failed} FAILED")
        parts += [f"ALARM {kind}" for kind in self._alarms]
        return " | ".join(parts)

    def _take(self, record: Record) -> bool:
        """Note a record; whether it is news (a new best, a failure)."""
        self._elapsed = record.elapsed
        for kind, sentence in record.alarms.items():
            self._alarms.setdefault(kind, sentence)
        if record.error is not None:
            self._failed += record.phase == "search"
        if record.stage > self._stage:
            self._stage = record.stage
            if record.phase == "baseline":  # of another objective: values before cannot be compared
                self._baseline = self._best = None
        if record.phase == "baseline":
            lowest = self._baseline[1] if self._baseline else math.inf
            if record.split == "select" and record.value is not None and record.name and record.value < lowest:
                self._baseline = (record.name, record.value)
            self._begun = self._begun if record.stage else record.elapsed
            return False
        if record.phase == "search":
            self._evaluations = self._count(record)
            self._ticks.append((self._count.made, record.elapsed))
            if record.value is not None and record.share == 1.0:
                self._value = record.value
            return record.error is not None
        if record.phase != "select" or record.value is None or (COLLAPSE in record.alarms and not self._collapsed):
            return False
        better = self._best is None or record.value < self._best
        self._best = record.value if better else self._best
        return better

    def _rate(self) -> float | None:
        """Evaluations a second, lately."""
        if len(self._ticks) < 2:
            return None
        (before, begun), (made, now) = self._ticks[0], self._ticks[-1]
        return (made - before) / (now - begun) if made > before and now > begun else None

    def _seconds_left(self, rate: float | None) -> float | None:
        limits: list[float] = []
        if self._limit and rate:
            limits.append((self._limit - self._evaluations) / rate)
        if self._minutes and self._begun is not None:
            limits.append(self._minutes * 60 - (self._elapsed - self._begun))
        return max(0.0, min(limits)) if limits else None

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._said = self._clock()

    def _show(self) -> None:
        if self._live is None:
            from rich.live import Live

            # stdout is left alone: it carries what --json prints.
            self._live = Live(
                get_renderable=self._picture, console=self._console, refresh_per_second=4, redirect_stdout=False
            )
            self._live.start()

    def _picture(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        parts: list[RenderableType] = [self._bars]
        if self._evaluations:
            if self._limit:
                parts.append(ProgressBar(total=self._limit, completed=self._evaluations, width=60))
            parts.append(Text(self.line()))
        return Group(*parts)


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(42), duration(754), duration(7380)
    ('42 s', '12 min 34 s', '2 h 03 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
