"""Feeds a tracking service with one run per search: a view of the trajectory, which stays the truth.

    sink = BackgroundSink(TrackerSink(WandbTracker(config.tracking)))      # never in the loop's own thread

What the service has already is not sent again, what it has not is: a run that was resumed, whose tracker was slow, or
that is sent when it is over, is there once and whole.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from optmerge.records import Record, Trajectory
from optmerge.runner.alarms import COLLAPSE
from optmerge.tracking.tracker import Level, Tracker
from optmerge.tracking.view import RunView
from optmerge.tracking.wandb_facts import kept_files, result_tables, summary, variables_table
from optmerge.tracking.wandb_rows import RowMaker

HEAT_MAP = "coefficients"
REFRESH = 300.0  # seconds between heat maps of a search that goes on

_TITLE = 40  # letters of a run's name in an alert's title, which may have 63


class TrackerSink:
    """Sends a search to a tracker.

    Args:
        tracker: Where to.
        refresh: Seconds that lie at least between two heat maps of the best coefficients so far.
    """

    def __init__(self, tracker: Tracker, *, refresh: float = REFRESH) -> None:
        self.tracker = tracker
        self.label = tracker.label
        self.remedy = tracker.remedy
        self.refresh = refresh
        self.sent = 0  # records that this sink has logged
        self._folder = Path()
        self._rows = RowMaker(())
        self._there = 0  # records that the service had before
        self._seen = -1
        self._searching = False
        self._alarmed: set[str] = set()
        self._drawn = (time.monotonic(), None)  # when a heat map was made, and of which record

    def start(self, run: Path) -> None:
        """Open the run at the service, and log what the trajectory holds already.

        Raises:
            UserError: The service cannot be used as it is set up.
        """
        self._folder = run
        view = RunView.open(run)
        self._there = self.tracker.open(view)
        variables = variables_table(view)
        if variables is not None and not self._there:
            self.tracker.show(0, tables={"variables": variables})
        first, *later = (view.variables(stage).compact for stage in range(len(view.stages)))
        self._rows = RowMaker(first, later, collapsed=view.collapsed)
        for record in view.records:
            self._log(record)

    def record(self, record: Record) -> None:
        """Log one record, once, with the memory that the process holds now."""
        if record.id > self._seen + 1:  # events were dropped while the tracker was slow
            self._catch_up(self._folder)
        elif record.id == self._seen + 1:
            self._log(record, memory())
            self._show_best(record)

    def progress(self, stage: str, done: int, total: int | None) -> None:
        """Nothing: evaluations only are shown."""

    def finish(self, run: Path, reason: str) -> None:
        """Log the rest, the summary, tables, heat map and files, tell how it ended, and close the run there."""
        self._catch_up(run)
        view = RunView.open(run)
        self.tracker.summarise(summary(view, reason))
        self.tracker.show(view.evaluations, tables=result_tables(view), pictures=_heat_map(view))
        for files in kept_files(view):
            self.tracker.keep(files)
        if view.status in ("finished", "failed"):
            self.tracker.alert(
                f"{view.name[:_TITLE]} {view.status}", reason, "ERROR" if view.status == "failed" else "INFO"
            )
        self.tracker.close(view)

    def abandon(self) -> None:
        """Let go of the run at the service after a failure."""
        self.tracker.abandon()

    def _log(self, record: Record, extra: dict[str, float] | None = None) -> None:
        self._seen = record.id
        row = self._rows.row(record) | (extra or {})
        new = record.id >= self._there
        for kind in record.alarms.keys() - self._alarmed:
            self._alarmed.add(kind)
            if new:
                level: Level = "ERROR" if kind == COLLAPSE else "WARN"
                self.tracker.alert(f"{self._folder.resolve().name[:_TITLE]}: {kind}", record.alarms[kind], level)
        if new:
            self.tracker.log(row)
            self.sent += 1
        if record.phase != "baseline" and not self._searching:
            self._searching = True
            view = RunView.open(self._folder, vectors=False)
            self.tracker.summarise(summary(view, view.reason))  # the baselines, which are done

    def _show_best(self, record: Record) -> None:
        """The best coefficients so far, where there are new ones and the last picture is old enough."""
        drawn, shown = self._drawn
        if record.phase != "select" or time.monotonic() - drawn < self.refresh:
            return
        view = RunView.open(self._folder)
        best: Any = None if view.best is None else view.best.record
        if best is not None and best != shown:
            self.tracker.show(view.evaluations, pictures=_heat_map(view))
        self._drawn = (time.monotonic(), best)

    def _catch_up(self, run: Path) -> None:
        for record in Trajectory.read(run).records[self._seen + 1 :]:
            self._log(record)


def memory() -> dict[str, float]:
    """What this process holds, in MiB: of the machine, and of all CUDA devices; now, and at most."""
    import psutil

    held = {"memory/process": psutil.Process().memory_info().rss / 2**20}
    torch = sys.modules.get("torch")  # a view does not import it
    if torch is not None and torch.cuda.is_initialized():
        devices = range(torch.cuda.device_count())
        held["memory/device"] = sum(map(torch.cuda.memory_allocated, devices)) / 2**20
        held["memory/device_peak"] = sum(map(torch.cuda.max_memory_allocated, devices)) / 2**20
    return held


def _heat_map(view: RunView) -> dict[str, Path]:
    from optmerge.tracking.plots import heat_map_figure, save_figure
    from optmerge.tracking.report import COEFFICIENTS

    if view.coefficients is None:
        return {}
    path = view.folder / COEFFICIENTS
    save_figure(heat_map_figure(view.coefficients), path)
    return {HEAT_MAP: path}
