"""The pictures of a front: its merges task by task, beside base, experts and baselines, and how it grew.

    save_figure(front_figure(shown), run / "front.png")
    save_figure(hypervolume_figure(hypervolume_curve(view)), run / "hypervolume.png")

Two tasks are two axes; more stand side by side, one line for each merge. See `optmerge.tracking.plots` for what all
pictures have in common.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from optmerge.tracking.front import FrontView, Parts, Shown
from optmerge.tracking.plots import BEST, LINES, SELECT

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from optmerge.records import Vector

Side = Literal["select", "report"]
GREY = "#9A9A9A"
_REACH = 0.75  # a baseline farther beyond the front than this share of its range is named, not drawn
_TITLE = 56  # characters in a line above the axes
_MARKERS = {"base": "s", "expert": "^"}


def front_figure(front: FrontView) -> Figure:
    """The front on select, where lower is better, and on report, where higher is; only the first while it is searched.

    Each merge has one colour in both. What cannot be drawn beside the front without shrinking it is named below.
    """
    from matplotlib.figure import Figure

    sides: list[Side] = ["select", "report"] if front.final else ["select"]
    wide = len(front.tasks) > 2
    figure = Figure(figsize=(4.2 * len(sides) + 2.0 + 0.5 * wide, 4.4), layout="constrained")
    for axes, side in zip(np.atleast_1d(figure.subplots(1, len(sides))), sides, strict=True):
        far = (_draw_lines if wide else _draw_points)(axes, front, side)
        axes.set_title("\n".join([_title(front, side), *_far(far)]), fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
        axes.grid(True, color="#E6E6E6", linewidth=0.6)
        axes.set_axisbelow(True)
        for spine in ("top", "right"):
            axes.spines[spine].set_visible(False)
    named: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    figure.legend(list(named.values()), list(named), fontsize=8, frameon=False, loc="outside right upper")
    return figure


def hypervolume_figure(curve: tuple[Sequence[int], Sequence[float]]) -> Figure:
    """The share of the space between base and ideal that is dominated, against evaluations."""
    from matplotlib.figure import Figure

    evaluations, shares = curve
    figure = Figure(figsize=(7.5, 2.9), layout="constrained")
    axes = figure.add_subplot()
    axes.step(evaluations, shares, where="post", color=SELECT, linewidth=1.6)
    axes.set_xlim(0, max(evaluations) * 1.02)
    axes.set_ylim(0, max(0.02, *shares) * 1.08)
    axes.set_xlabel("evaluations on the fit split", fontsize=9)
    axes.set_ylabel("hypervolume\n(share, 1 = best at every task)", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(True, color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)
    for spine in ("top", "right"):
        axes.spines[spine].set_visible(False)
    return figure


def _title(front: FrontView, side: Side) -> str:
    if side == "report":
        return f"{front.metric}, report split (higher is better)"
    return f"objective, {'select' if front.final else front.split} split (lower is better)"


def _draw_points(axes: Axes, front: FrontView, side: Side) -> list[Shown]:
    """Two tasks: a point for each merge, and on select the border of what they beat. Gives what is too far away."""
    members = _able(front, front.members, side)
    line = [_values(front, member, side) for member in members if member.on_front]
    if line and side == "select":
        x, y = np.array(line).T
        axes.step(x, y, where="post", color=SELECT, linewidth=1.2, alpha=0.5, zorder=2)
    for member in members:
        x, y = _values(front, member, side)
        if member.chosen:
            axes.plot(x, y, "*", color=BEST, markersize=14, zorder=5, linestyle="", label="the search's result")
        elif member.on_front:
            axes.plot(x, y, "o", color=SELECT, markersize=5, zorder=4, linestyle="", label="the front")
        else:
            axes.plot(
                x,
                y,
                "o",
                color=GREY,
                markerfacecolor="white",
                markersize=5,
                zorder=3,
                linestyle="",
                label="beaten on select",
            )
    near, far = _split_marks(front, side)
    for mark, colour in near:
        x, y = _values(front, mark, side)
        marker = _MARKERS.get(mark.kind, "D")
        axes.plot(x, y, marker, color=colour, markersize=7, zorder=3, linestyle="", label=mark.name)
    axes.set_xlabel(front.tasks[0], fontsize=9)
    axes.set_ylabel(front.tasks[1], fontsize=9)
    axes.margins(0.07)
    return far


def _draw_lines(axes: Axes, front: FrontView, side: Side) -> list[Shown]:
    """More tasks: one line for each merge over all of them. Gives what is too far away."""
    places = np.arange(len(front.tasks))
    for member in _able(front, front.members, side):
        values = _values(front, member, side)
        if member.chosen:
            axes.plot(
                places, values, "-o", color=BEST, linewidth=2.0, markersize=4, zorder=5, label="the search's result"
            )
        elif member.on_front:
            axes.plot(places, values, "-", color=SELECT, linewidth=1.1, alpha=0.75, zorder=3, label="the front")
        else:
            axes.plot(places, values, "-", color=GREY, linewidth=0.8, alpha=0.6, zorder=2, label="beaten on select")
    near, far = _split_marks(front, side)
    for mark, colour in near:
        style = ":" if mark.kind == "expert" else "--"
        marker = _MARKERS.get(mark.kind, "D")
        axes.plot(
            places,
            _values(front, mark, side),
            style,
            marker=marker,
            color=colour,
            markersize=4,
            linewidth=1.0,
            zorder=4,
            label=mark.name,
        )
    axes.set_xticks(places, front.tasks, fontsize=8, rotation=25, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.15, len(front.tasks) - 0.85)
    return far


def _split_marks(front: FrontView, side: Side) -> tuple[list[tuple[Shown, str]], list[Shown]]:
    """What is drawn beside the front, each with its colour, and what lies too far from it."""
    members = np.array([_values(front, member, side) for member in _able(front, front.members, side)])
    marks = _marks(front, side)
    colours = {mark.name: LINES[number % len(LINES)] for number, mark in enumerate(marks)}
    able = _able(front, marks, side)
    base = [_values(front, mark, side) for mark in able if mark.kind == "base"]
    seen = (
        np.concatenate([part for part in (members, np.array(base)) if part.size]) if members.size or base else members
    )
    near, far = [], []
    for mark in able:
        if seen.size and not _within(_values(front, mark, side), seen, together=len(front.tasks) > 2):
            far.append(mark)
        else:
            near.append((mark, colours[mark.name]))
    return near, far


def _marks(front: FrontView, side: Side) -> list[Shown]:
    """Beside more tasks than two, every expert stands for its own only: on the others it is no merge's rival."""
    if len(front.tasks) == 2:
        return list(front.marks)
    named = {mark.name: _parts(mark, side) or {} for mark in front.marks}
    own = {task: named.get(front.experts[task], {}).get(task) for task in front.tasks}
    parts = {task: value for task, value in own.items() if value is not None}
    rest = [mark for mark in front.marks if mark.kind != "expert"]
    return [*rest, Shown("each task's expert", "expert", select=parts, report=parts)]


def _within(values: Vector, seen: Vector, *, together: bool) -> bool:
    """Whether a baseline lies near enough to what must be seen; tasks share an axis where they stand together."""
    low, high = (seen.min(), seen.max()) if together else (seen.min(axis=0), seen.max(axis=0))
    reach = _REACH * np.maximum(high - low, 0.02)
    return bool(((values >= low - reach) & (values <= high + reach)).all())


def _far(far: Sequence[Shown]) -> list[str]:
    return textwrap.wrap("beyond the axes: " + ", ".join(mark.name for mark in far), _TITLE) if far else []


def _able(front: FrontView, shown: Sequence[Shown], side: Side) -> list[Shown]:
    """Those that have a value for each task."""
    return [each for each in shown if all(task in (_parts(each, side) or {}) for task in front.tasks)]


def _parts(shown: Shown, side: Side) -> Parts | None:
    return shown.select if side == "select" else shown.report


def _values(front: FrontView, shown: Shown, side: Side) -> Vector:
    parts = _parts(shown, side) or {}
    return np.array([parts[task] for task in front.tasks])
