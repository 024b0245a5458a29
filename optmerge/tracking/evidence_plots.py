"""The pictures that say how far to trust a run: scores with their intervals, and signals with the alarm's thresholds.

    save_figure(results_figure(view), run / "results.png")
    save_figure(signals_figure(view), run / "signals.png")

See `optmerge.tracking.plots` for what all pictures have in common.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optmerge.runner.alarms import COLLAPSE, raised_alarms
from optmerge.tracking.plots import BEST, LINES, SELECT
from optmerge.tracking.rows import Row
from optmerge.tracking.signals import alarm_settings, curves
from optmerge.tracking.view import RunView

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TITLES = {
    "agreement": "agreement with the expert\n(share of the start's)",
    "top-share": "most frequent class's share\n(excess over the expert's)",
    "marginal-entropy": "variety of classes: marginal entropy\n(share of the expert's)",
}


def results_figure(view: RunView) -> Figure:
    """Every row's report score as a dot with its interval, the best at the top; the search has its own colour."""
    from matplotlib.figure import Figure

    rows = sorted((row for row in view.rows if row.mean is not None), key=lambda row: row.mean or 0.0)
    figure = Figure(figsize=(7.5, 1.2 + 0.26 * max(4, len(rows))), layout="constrained")
    axes = figure.add_subplot()
    for height, row in enumerate(rows):
        _dot(axes, height, row)
    axes.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=8)
    search = view.search_row
    if search is not None and search.interval is not None:
        axes.axvspan(*search.interval, color=BEST, alpha=0.12, linewidth=0)
    axes.set_xlabel(f"mean {view.metric} on the report split, with 95 % intervals over its examples")
    _plain(axes)
    return figure


def signals_figure(view: RunView) -> Figure:
    """What the collapse alarm looks at, task by task, with its thresholds; what it raised is marked."""
    from matplotlib.figure import Figure

    settings = alarm_settings(view)
    limits = {
        "agreement": settings.agreement,
        "top-share": settings.top_share,
        "marginal-entropy": settings.marginal_entropy,
    }
    found = curves(view)
    raised = [alarm.evaluations for alarm in raised_alarms(view.records) if alarm.kind == COLLAPSE]
    figure = Figure(figsize=(9.0, 2.9), layout="constrained")
    panels = figure.subplots(1, len(_TITLES))
    for axes, (measure, title) in zip(panels, _TITLES.items(), strict=True):
        for number, (task, points) in enumerate(found.get(measure, {}).items()):
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color=LINES[number % len(LINES)], linewidth=1.3, label=task)
        axes.axhline(limits[measure], color=BEST, linestyle="--", linewidth=1.0)
        for evaluations in raised:
            axes.axvline(evaluations, color=BEST, linewidth=1.0)
        axes.set_title(title, fontsize=8)
        axes.set_xlabel("evaluations on fit", fontsize=8)
        axes.tick_params(labelsize=7)
        _plain(axes)
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, fontsize=7, frameon=False, loc="outside lower center", ncols=6)
    return figure


def _dot(axes: Axes, height: int, row: Row) -> None:
    assert row.mean is not None
    colour = BEST if row.kind == "search" else SELECT if row.chosen else "#7F7F7F"
    spread = None
    if row.interval is not None:
        spread = [[max(0.0, row.mean - row.interval[0])], [max(0.0, row.interval[1] - row.mean)]]
    axes.errorbar([row.mean], [height], xerr=spread, fmt="o", color=colour, markersize=4, linewidth=1.2, capsize=2)


def _plain(axes: Axes) -> None:
    axes.grid(True, color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
