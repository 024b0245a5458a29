"""Views of a run: terminal, W&B, the Optuna mirror, report, comparison. None of them can hurt the search.

    sinks = standard_sinks(config)
    search(config, root=Path("."), sinks=[sinks])

A view can also be made later from the run folder alone: `RunView`, `write_report`, `compare_runs`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal, cast

if TYPE_CHECKING:
    from rich.console import Console

    from optmerge.config.schema import SearchConfig
    from optmerge.records import Sink
    from optmerge.tracking.sinks import SafeSinks
    from optmerge.tracking.terminal import Interrupt


def standard_sinks(
    config: SearchConfig,
    *,
    terminal: bool | Literal["json"] = True,
    console: Console | None = None,
    stop: object = None,
) -> SafeSinks:
    """What watches a search that a user starts.

    Args:
        config: The search.
        terminal: Whether to show it on the terminal; "json": as JSON lines where stderr is no terminal.
        console: Where that is; stderr when not given.
        stop: What may ask the search to stop; one with a note (`optmerge.tracking.terminal.Interrupt`) has it shown.
    """
    from optmerge.tracking.optuna_mirror import OptunaMirror
    from optmerge.tracking.report import ReportSink
    from optmerge.tracking.sinks import BackgroundSink, SafeSinks

    sinks: list[Sink] = [BackgroundSink(OptunaMirror()), ReportSink()]
    if config.tracking.to == "trackio":
        from optmerge.tracking.tracker_sink import TrackerSink
        from optmerge.tracking.trackio_tracker import TrackioTracker

        sinks.append(BackgroundSink(TrackerSink(TrackioTracker(config.tracking))))
    elif config.tracking.wandb != "disabled":
        from optmerge.tracking.tracker_sink import TrackerSink
        from optmerge.tracking.wandb_tracker import WandbTracker

        sinks.append(BackgroundSink(TrackerSink(WandbTracker(config.tracking))))
    if terminal == "json" and not sys.stderr.isatty():
        from optmerge.tracking.events import EventSink

        sinks.append(EventSink(sys.stderr))
    elif terminal:
        from optmerge.tracking.terminal import TerminalSink

        interrupt = cast("Interrupt", stop) if hasattr(stop, "note") else None
        sinks.append(
            TerminalSink(console, interrupt=interrupt)
        )  # last, so that it is still there while the others finish
    return SafeSinks(sinks)
