"""The pictures of an explanation: coefficients by layer and kind, sensitivity, ablations, and who relies on whom.

    save_figure(reliance_figure(found), run / "explain" / "reliance.png")

``found`` is what `optmerge.runner.explain` gives. See `optmerge.tracking.plots` for what all pictures have in common.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from optmerge.tracking.plots import BEST, SELECT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 30  # variables in the picture of sensitivity

_ROW = 0.24  # inches
_TALLEST = 16.0  # inches; more rows than that are drawn thinner, and not every one is labelled
_WRITTEN = 400  # cells that have their numbers written in them

Found = Mapping[str, Any]


def coefficients_figure(found: Found) -> Figure:
    """A panel per direction: mean coefficient by layer (down) and kind (across); grey where there is no such tensor."""
    told = found["coefficients"]
    panels = {name: _table(values) for name, values in told["values"].items()}
    return _panels(panels, told["rows"], told["kinds"], "coefficient", "{:.2f}")


def ablation_figure(found: Found) -> Figure:
    """Rise of the objective in per cent, by group (down) and direction (across); a dot where it is within its noise."""
    blocks = found["ablation"]["blocks"]
    rows = list(dict.fromkeys(block["group"] for block in blocks))
    columns = [name for name in found["directions"] if any(block["direction"] == name for block in blocks)]
    values, unsure = np.full((len(rows), len(columns)), np.nan), np.zeros((len(rows), len(columns)), dtype=np.bool_)
    for block in blocks:
        at = rows.index(block["group"]), columns.index(block["direction"])
        if block["rise"] is not None and found["objective"]:
            values[at] = 100 * block["rise"] / abs(found["objective"])
        unsure[at] = block["low"] is not None and block["low"] <= 0 <= block["high"]
    title = "rise of the objective on select when the coefficients are 0, in %"
    return _panels({title: values}, rows, columns, "%", "{:+.1f}", unsure=unsure)


def reliance_figure(found: Found) -> Figure:
    """Rise of each task's part in per cent (across) without a whole direction (down)."""
    columns = list(found["per_task"])
    rows = [entry["direction"] for entry in found["reliance"]]
    values = np.full((len(rows), len(columns)), np.nan)
    unsure = np.zeros(values.shape, dtype=np.bool_)
    for row, entry in enumerate(found["reliance"]):
        for column, task in enumerate(columns):
            told = entry["per_task"].get(task)
            if told is not None and found["per_task"][task]:
                values[row, column] = 100 * told[0] / abs(found["per_task"][task])
                unsure[row, column] = len(told) > 1 and told[1] <= 0 <= told[2]
    title = "rise of each task's objective without an expert, in %"
    return _panels({title: values}, rows, columns, "%", "{:+.0f}", unsure=unsure)


def sensitivity_figure(found: Found) -> Figure:
    """The most sensitive variables: Fisher diagonal with its standard error, and how far each may move."""
    from matplotlib.figure import Figure

    told = found["sensitivity"]
    shown = told["variables"][:SHOWN]
    moves = [variable["move"] for variable in shown]
    known = any(move is not None for move in moves)
    figure = Figure(figsize=(10.0 if known else 7.0, 1.3 + _ROW * max(4, len(shown))), layout="constrained")
    panels = figure.subplots(1, 2 if known else 1, sharey=True, squeeze=False)[0]
    heights = np.arange(len(shown))
    fisher = np.array([variable["fisher"] for variable in shown])
    errors = np.array([variable["fisher_error"] for variable in shown])
    panels[0].barh(heights, fisher, xerr=np.stack([np.minimum(errors, fisher), errors]), color=SELECT, height=0.65)
    panels[0].set_yticks(heights, [variable["name"] for variable in shown], fontsize=7)
    panels[0].invert_yaxis()
    panels[0].set_xlabel(f"mean squared gradient over {told['batches']} parts of fit, with standard errors", fontsize=8)
    if known:
        for height, variable in enumerate(shown):
            if variable["move"] is not None:
                ends = [variable["value"] - variable["move"], variable["value"] + variable["move"]]
                panels[1].plot(ends, [height, height], "-", color=SELECT, linewidth=2.0, alpha=0.5)
            panels[1].plot([variable["value"]], [height], "o", color=BEST, markersize=4)
        panels[1].set_xlabel("value, and how far it may move for 1 % more (second order)", fontsize=8)
    for axes in panels:
        _plain(axes)
    return figure


def _panels(
    panels: Mapping[str, npt.NDArray[np.float64]],
    rows: Sequence[str],
    columns: Sequence[str],
    unit: str,
    form: str,
    *,
    unsure: npt.NDArray[np.bool_] | None = None,
) -> Figure:
    """Heat maps with rows and a colour scale in common; white is 0."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure

    tall = min(_TALLEST, max(1.4, _ROW * len(rows)))
    longest = max(map(len, rows), default=1) * 0.065
    single = len(panels) == 1
    wide = len(columns) * (0.95 if single else 0.62)
    width = max(longest + len(panels) * (wide + 0.2) + 1.3, 5.5 if single else 4.5)
    figure = Figure(figsize=(width, tall + 1.5), layout="constrained")
    drawn = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    finite = np.concatenate([values[np.isfinite(values)] for values in panels.values()])
    limit = _limit(finite)
    norm = TwoSlopeNorm(0.0, -limit, limit)
    write = sum(values.size for values in panels.values()) <= _WRITTEN and tall >= _ROW * len(rows)
    for axes, (title, values) in zip(drawn, panels.items(), strict=True):
        axes.set_facecolor("#DDDDDD")
        axes.imshow(np.ma.masked_invalid(values), cmap="RdBu_r", norm=norm, aspect="auto", interpolation="nearest")
        axes.set_title(title, fontsize=9)
        axes.set_xticks(range(len(columns)), columns, rotation=35, ha="right", rotation_mode="anchor", fontsize=8)
        axes.tick_params(length=0)
        for (row, column), value in np.ndenumerate(values):
            if not np.isfinite(value) or not write:
                continue
            text = form.format(value) + ("\N{MIDDLE DOT}" if unsure is not None and unsure[row, column] else "")
            ink = "white" if abs(value) > 0.65 * limit else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=ink)
    step = max(1, round(len(rows) * _ROW / tall))
    drawn[0].set_yticks(range(0, len(rows), step), list(rows)[::step], fontsize=8)
    bar = figure.colorbar(ScalarMappable(norm, "RdBu_r"), ax=list(drawn), shrink=min(1.0, 3.5 / (tall + 1.0)))
    bar.set_label(unit, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def _limit(values: npt.NDArray[np.float64]) -> float:
    """The end of the colour scale: the largest magnitude, unless a few values are far above all others."""
    sizes = np.abs(values)
    if not sizes.size or not sizes.max():
        return 1.0
    usual = float(np.percentile(sizes, 95))
    return float(sizes.max()) if usual == 0 or sizes.max() < 3 * usual else 1.5 * usual


def _table(values: Sequence[Sequence[float | None]]) -> npt.NDArray[np.float64]:
    return np.array([[np.nan if value is None else value for value in row] for row in values], dtype=np.float64)


def _plain(axes: Axes) -> None:
    axes.grid(True, axis="x", color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="x", labelsize=7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
