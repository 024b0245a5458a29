"""A run on the terminal, on stderr: a live picture of where the search stands; plain lines in a pipe.

    sink = TerminalSink()
    sink.start(run); sink.record(record); sink.finish(run, reason)

The picture has the best iterate and the best baseline, a bar per task, the budget with the estimated end, and alarms.
It fits 80 columns. Colours follow the terminal and NO_COLOR.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from optmerge.records import Record
from optmerge.runner.folder import RunFolder
from optmerge.tracking.markdown import number
from optmerge.tracking.standing import Score, Standing, duration
from optmerge.tracking.view import RunView

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

PLAIN_SECONDS = 10.0  # between two plain lines, unless there is news
MOST_TASKS = 12  # that have a bar each; of more, those that agree least
BAR = 24


class Interrupt(Protocol):
    """What a Ctrl-C sets, as `optmerge.cli.signals.StopFlag`.

    Attributes:
        viewed: Whether a view shows `note`; set by the view.
    """

    viewed: bool

    def note(self) -> str:
        """What the user should be told now; may be empty."""


class TerminalSink:
    """Shows a run while it is made.

    Args:
        console: Where to; a console on stderr when not given. Whoever logs to the terminal should log to the same one.
        clock: Seconds from any start.
        interrupt: What may ask the search to stop, and has something to say to the user then.
    """

    label = "the terminal display"

    def __init__(
        self,
        console: Console | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        interrupt: Interrupt | None = None,
    ) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._console = console or Console(file=sys.stderr, highlight=False)
        self._clock = clock
        self._interrupt = interrupt
        self._live: Live | None = None
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(BAR),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
        )
        self._tasks: dict[str, object] = {}
        self._shares: dict[str, int] = {}
        self._said = float("-inf")
        self._taken = clock()
        self.standing = Standing()

    def start(self, run: Path) -> None:
        """Take over what an interrupted run has done already."""
        self.standing.begin(RunView.open(run, vectors=False))
        if self.standing.evaluations:
            self._say(f"{self.standing.name}: going on after {self.standing.evaluations} evaluations")

    def record(self, record: Record) -> None:
        """Show a record."""
        known = set(self.standing.alarms)
        news = self.standing.take(record)
        self._taken = self._clock()
        if self._console.is_terminal:
            self._show()
            return
        for kind in self.standing.alarms.keys() - known:
            self._say(f"ALARM ({kind}): {self.standing.alarms[kind]}")
        if record.phase != "baseline" and (news or self._clock() - self._said >= PLAIN_SECONDS):
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
            self._view(shown=False)
        if not self._console.is_terminal and self.standing.evaluations:
            self._say(self.line())
        self._say(f"stopped: {reason}" if reason else "stopped")
        workers = (RunFolder(run).read_json("result.json") or {}).get("workers")
        if workers is not None and workers["idle"] is not None:
            self._say(f"{workers['count']} workers, which evaluated nothing for {workers['idle']:.0%} of their time")

    def line(self) -> str:
        """Where the search stands, in one line."""
        return self.standing.line()

    def _say(self, text: str) -> None:
        # A pipe has no width that lines should be folded to.
        self._console.print(text, markup=False, highlight=False, soft_wrap=not self._console.is_terminal)
        self._said = self._clock()

    def _show(self) -> None:
        if self._live is None:
            from rich.live import Live

            # stdout is left alone: it carries what --json prints.
            self._live = Live(
                get_renderable=self._picture, console=self._console, refresh_per_second=4, redirect_stdout=False
            )
            self._live.start()
            self._view(shown=True)

    def _view(self, *, shown: bool) -> None:
        if self._interrupt is not None:
            self._interrupt.viewed = shown

    def _picture(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        # A window that is too low shows the upper part: what matters most stands first.
        parts: list[RenderableType] = []
        if self._interrupt is not None and self._interrupt.note():
            parts.append(Text(self._interrupt.note(), style="bold"))
        parts.append(self._bars)
        if self.standing.evaluations:
            parts.append(picture(self.standing, since=self._clock() - self._taken, now=datetime.now()))
        return Group(*parts)


def picture(standing: Standing, *, since: float, now: datetime) -> RenderableType:
    """Where a search stands, as lines of at most 80 columns.

    Args:
        standing: The state.
        since: Seconds since its latest record.
        now: The time of day.
    """
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    rows = Table.grid(padding=(0, 2))
    rows.add_column(no_wrap=True)
    rows.add_column(overflow="fold")
    stage = f", stage {standing.stage + 1}" if standing.stage else ""
    rows.add_row("search", Text(f"{standing.name} ({standing.driver}{stage})", style="bold"))
    made: RenderableType = str(standing.evaluations)
    if standing.limit:
        made = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=standing.limit, completed=standing.evaluations, width=BAR)
        made.add_row(bar, f"{standing.evaluations}/{standing.limit}")
    rows.add_row("evaluations", made)
    rows.add_row("best select", Text(_best(standing)))
    if standing.baseline is not None:
        rows.add_row("baseline", Text(f"{number(standing.baseline.value)}, {standing.baseline.name}"))
    rows.add_row("time", Text(_time(standing, since, now)))
    if standing.failed:
        rows.add_row("failed", Text(f"{standing.failed} evaluations", style="red"))
    parts: list[RenderableType] = [rows]
    parts += [Text(f"ALARM ({kind}): {sentence}", style="bold red") for kind, sentence in standing.alarms.items()]
    if standing.best is not None and standing.best.tasks:
        parts.append(_tasks(standing, standing.best))
    return Group(*parts)


def _best(standing: Standing) -> str:
    if standing.best is None:
        return "none yet"
    latest = "" if standing.value is None else f"; latest fit {number(standing.value)}"
    against = ""
    if standing.baseline is not None and standing.baseline.value > 0:
        gain = 1 - standing.best.value / standing.baseline.value
        against = f" ({abs(gain):.1%} {'below' if gain > 0 else 'above'} the best baseline)" if gain else ""
    return f"{number(standing.best.value)} after {standing.best.evaluations}{against}{latest}"


def _time(standing: Standing, since: float, now: datetime) -> str:
    parts = [f"{duration(standing.elapsed + since)} so far"]
    if standing.pace:
        parts.append(standing.pace)
    if standing.seconds_left is not None:
        left = max(0.0, standing.seconds_left - since)
        end = now + timedelta(seconds=left)
        parts.append(f"about {duration(left)} left, until {end:%H:%M}" + (f" on {end:%d %b}" if left > 86_400 else ""))
    return ", ".join(parts)


def _tasks(standing: Standing, best: Score) -> RenderableType:
    """A bar per task: agreement with the expert where that is measured, and the objective beside the baseline's."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    agrees = bool(best.agreement)
    rows = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    # Where a window is narrow, names and bars are cut; numbers never are, for a part of one is another one.
    rows.add_column("task", no_wrap=True, overflow="ellipsis", max_width=24)
    if agrees:
        rows.add_column("agreement with its expert")
        rows.add_column("", no_wrap=True, min_width=5)
    rows.add_column("objective", justify="right", no_wrap=True, min_width=9)
    rows.add_column("baseline's", justify="right", no_wrap=True, min_width=10)
    names = sorted(best.tasks, key=lambda task: best.agreement.get(task, -best.tasks[task]))[:MOST_TASKS]
    baseline = {} if standing.baseline is None else standing.baseline.tasks
    for task in (name for name in best.tasks if name in names):
        share = best.agreement.get(task, 0.0)
        bar = (ProgressBar(total=1.0, completed=share, width=BAR), f"{share:.3f}") if agrees else ()
        rows.add_row(task, *bar, number(best.tasks[task]), number(baseline[task]) if task in baseline else "-")
    left = len(best.tasks) - len(names)
    if left:
        rows.add_row(f"and {left} more")
    return rows
