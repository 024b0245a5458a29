"""The pictures of a run, as PNG: the trajectory beside its baselines, and the best coefficients.

    save_figure(trajectory_figure(view), run / "trajectory.png")
    save_figure(heat_map_figure(view.coefficients), run / "coefficients.png")

Only `matplotlib.figure.Figure` objects and the Agg canvas are used: nothing here touches matplotlib's global state.
Colours are those of Okabe & Ito (2008) and the diverging map RdBu, which colour-blind readers can tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from optmerge.atomic import atomic_path
from optmerge.tracking.coefficients import Coefficients
from optmerge.tracking.markdown import number
from optmerge.tracking.rows import baseline_family
from optmerge.tracking.view import RunView

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIT, SELECT, BEST = "#9FB4C7", "#0072B2", "#D55E00"
LINES = ("#007A5A", "#A8578A", "#A36F00", "#000000", "#2B7BB0", "#7F7F7F")  # darkened, so that text is legible
DOTS_PER_INCH = 150

_ROW_INCHES = 0.155  # of a labelled row of the heat map
_TALLEST = 24.0  # inches with labelled rows; where that is not enough only layers are labelled
_DENSE = 14.0  # inches without
_WRITTEN_CELLS = 120  # up to so many coefficients are also written as numbers
_OFF_SCALE = 1.5  # a baseline farther above the search than this many of its ranges is named, not drawn


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically; the same figure gives the same bytes.

    Raises:
        RunError: The disk refuses.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})


def trajectory_figure(view: RunView) -> Figure:
    """Fit and select values against evaluations, the baselines' select values as labelled lines, the best marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 4.8), layout="constrained")
    axes = figure.add_subplot()
    if view.fit:
        x, y = [p.evaluations for p in view.fit], [p.value for p in view.fit]
        axes.plot(x, y, ".", color=FIT, markersize=4, label="fit, each candidate", zorder=2)
    if view.select:
        x, y = [p.evaluations for p in view.select], [p.value for p in view.select]
        axes.plot(x, y, "-", color=SELECT, linewidth=1.4, label="select, each generation's best", zorder=3)
    if view.best is not None:
        label = f"best on select: {view.best.value:.4g} after {view.best.evaluations} evaluations"
        axes.plot([view.best.evaluations], [view.best.value], "*", color=BEST, markersize=14, label=label, zorder=5)
    last = max((p.evaluations for p in (*view.fit, *view.select)), default=1)
    axes.set_xlim(0, last * 1.02)
    _draw_baselines(axes, view)
    for stage, begin in enumerate(view.stage_begins, 2):
        axes.axvline(begin.evaluations + 0.5, color="#7F7F7F", linestyle=":", linewidth=1.0, zorder=1)
        axes.annotate(
            f" stage {stage}",
            (begin.evaluations + 0.5, 0.01),
            xycoords=axes.get_xaxis_transform(),
            fontsize=7,
            color="#7F7F7F",
        )
    axes.set_xlabel("evaluations on the fit split")
    axes.set_ylabel("objective (lower is better)")
    figure.suptitle(_title(view), x=0.01, ha="left", fontsize=11)
    axes.grid(True, color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=3, borderaxespad=0.2
        )
    else:
        axes.text(0.5, 0.5, "no evaluation yet", transform=axes.transAxes, ha="center", color="#7F7F7F")
    return figure


def heat_map_figure(coefficients: Coefficients) -> Figure:
    """Coefficients by group (in depth order, down) and direction (across); white is zero, grey is not known.

    Where tensors have coefficients for their slices, a second map has the standard deviations beside the means.
    """
    from matplotlib.figure import Figure

    values, spread = coefficients.values, coefficients.spread
    rows, columns = values.shape
    every_row = rows * _ROW_INCHES <= _TALLEST
    row_inches = (0.3 if rows <= 30 else _ROW_INCHES) if every_row else _DENSE / rows
    labels = coefficients.labels
    names = max((len(label) for label in labels), default=0) * 0.062 if every_row else 1.0
    maps = [("coefficient", values, "RdBu_r")]
    if spread is not None:
        maps = [("mean over slices", values, "RdBu_r"), ("standard deviation over slices", spread, "Purples")]
    column_inches = max(0.55, min(1.1, 4.5 / columns)) * len(maps)
    width = max(4.8, names + columns * column_inches + 1.8 * len(maps))
    figure = Figure(figsize=(width, rows * row_inches + 1.5), layout="constrained")
    slanted = max((len(name) for name in coefficients.columns), default=0) * 0.085 > (width - names - 1.8) / (
        columns * len(maps)
    )
    for axes, (label, table, colours) in zip(
        figure.subplots(1, len(maps), sharey=True, squeeze=False)[0], maps, strict=True
    ):
        _draw_table(figure, axes, table, label, colours, height=rows * row_inches + 1.5)
        if slanted:
            axes.set_xticks(
                range(columns), coefficients.columns, rotation=35, ha="left", rotation_mode="anchor", fontsize=9
            )
        else:
            axes.set_xticks(range(columns), coefficients.columns, fontsize=9)
    _label_rows(figure.axes[0], coefficients, labels if every_row else None)
    return figure


def _draw_table(
    figure: Figure, axes: Axes, values: npt.NDArray[np.float64], label: str, colours: str, *, height: float
) -> None:
    """One heat map with its colour bar; numbers stand in it where they are few. Signed ones are white at zero."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    finite = np.abs(values[np.isfinite(values)])
    limit = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    norm = Normalize(-limit if colours == "RdBu_r" else 0.0, limit)
    axes.set_facecolor("#DDDDDD")
    axes.imshow(np.ma.masked_invalid(values), cmap=colours, norm=norm, aspect="auto", interpolation="nearest")
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    if values.size <= _WRITTEN_CELLS:
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                ink = "white" if abs(value) > 0.65 * limit else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=ink)
    for column in range(1, values.shape[1]):
        axes.axvline(column - 0.5, color="white", linewidth=1.0)
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, shrink=min(1.0, 4.0 / height), anchor=(0.0, 1.0))
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)


def _title(view: RunView) -> str:
    terms = " + ".join(term["name"] for term in (view.settings.get("objective") or {}).get("terms", []))
    return f"{view.name}: {terms or 'objective'} by {view.driver}"


def _draw_baselines(axes: Axes, view: RunView) -> None:
    best: dict[str, tuple[str, float]] = {}
    for name, splits in view.baselines.items():
        value = splits["select"].value if "select" in splits else None
        family = baseline_family(name)
        if value is not None and (family not in best or value < best[family][1]):
            best[family] = (name, value)
    lines = sorted(best.values(), key=lambda pair: pair[1])
    searched = np.array([p.value for p in (*view.fit, *view.select)])
    if searched.size:
        low, high = float(searched.min()), float(np.percentile(searched, 98))
        nearest = [value for _, value in lines[:2]]
        low, high = min([low, *nearest]), max([high, *nearest])
        reach = high + _OFF_SCALE * max(high - low, 0.05 * abs(high))
    else:
        low, reach = min((value for _, value in lines), default=0.0), float("inf")
    drawn = [(name, value) for name, value in lines if value <= reach]
    if searched.size:
        high = max([high, *(value for _, value in drawn)])
        margin = 0.06 * (high - low or abs(high) or 1.0)
        axes.set_ylim(low - margin, high + margin)
    for colour, (_, value) in zip(_cycle(LINES, len(drawn)), drawn, strict=True):
        axes.axhline(value, color=colour, linestyle="--", linewidth=1.0, zorder=1)
    heights = _spread([value for _, value in drawn], axes.get_ylim(), 0.045)
    for colour, (name, value), height in zip(_cycle(LINES, len(drawn)), drawn, heights, strict=True):
        _beside(axes, f"{name}  {number(value)}", height, colour)
    beyond = [f"{name} {value:.3g}" for name, value in lines if value > reach]
    if beyond:
        beyond = [f"{name}  {number(value)}" for name, value in lines if value > reach]
    if beyond:
        text = "higher than shown:\n" + "\n".join(beyond)
        _beside(axes, text, axes.get_ylim()[1], "#555555", above=True)


def _beside(axes: Axes, text: str, height: float, colour: str, *, above: bool = False) -> None:
    """Text to the right of the axes at a height in data units."""
    axes.annotate(
        text,
        (1.005, height),
        xycoords=axes.get_yaxis_transform(),
        va="bottom" if above else "center",
        fontsize=8,
        color=colour,
        annotation_clip=False,
    )


def _label_rows(axes: Axes, coefficients: Coefficients, labels: Sequence[str] | None) -> None:
    """Every row's name, or the layers' numbers where rows are too thin; a line between layers either way."""
    layers = coefficients.layers
    starts = [0, *(row for row in range(1, len(layers)) if layers[row] != layers[row - 1])]
    ends = [*starts[1:], len(layers)]
    if len(starts) < len(layers):
        for start in starts[1:]:
            axes.axhline(start - 0.5, color="#555555", linewidth=0.6)
    if labels is not None:
        axes.set_yticks(range(len(labels)), labels, fontsize=9 if len(labels) <= 30 else 7)
        return
    middles = [(start + end - 1) / 2 for start, end in zip(starts, ends, strict=True)]
    names = [coefficients.labels[s] if layers[s] is None else f"layer {layers[s]}" for s in starts]
    axes.set_yticks(middles, names, fontsize=8)


def _spread(values: Sequence[float], limits: tuple[float, float], share: float) -> list[float]:
    """Heights for labels of increasing ``values``, at least ``share`` of the axis apart, as near as that allows."""
    gap = share * (limits[1] - limits[0])
    heights: list[float] = []
    for value in values:
        heights.append(max(value, heights[-1] + gap) if heights else value)
    over = heights[-1] - limits[1] if heights else 0.0
    if over > 0:
        heights[-1] -= over
        for i in range(len(heights) - 2, -1, -1):
            heights[i] = min(heights[i], heights[i + 1] - gap)
    return heights


def _cycle(colours: Sequence[str], count: int) -> list[str]:
    return [colours[i % len(colours)] for i in range(count)]
