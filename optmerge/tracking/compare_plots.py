"""Several runs in one picture: how far each had come after so many evaluations.

    save_figure(overlay_figure([Path("runs/a"), Path("runs/b")]), Path("compare.png"))

Values are those of the select split, on which a run's best iterate is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from optmerge.errors import RunError
from optmerge.tracking.compare import run_names
from optmerge.tracking.plots import BEST, LINES, SELECT
from optmerge.tracking.view import RunView

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = (SELECT, BEST, *LINES)
_STYLES = ("-", "--", ":", "-.")  # of the second, third and fourth round through the colours


def overlay_figure(folders: Sequence[Path]) -> Figure:
    """The lowest select value so far against evaluations, a line per run; its best iterate is marked.

    Args:
        folders: Run folders, named in the legend as in the comparison's tables.

    Raises:
        RunError: A folder holds no run, or none is given.
    """
    from matplotlib.figure import Figure

    if not folders:
        raise RunError("There is nothing to draw: name at least one run folder.")
    views = [RunView.open(folder, vectors=False) for folder in folders]
    figure = Figure(figsize=(9.0, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for index, (view, name) in enumerate(zip(views, run_names(folders), strict=True)):
        turn, place = divmod(index, len(_COLOURS))
        colour, style = _COLOURS[place], _STYLES[turn % len(_STYLES)]
        evaluations = [point.evaluations for point in view.select]
        lowest = list(accumulate((point.value for point in view.select), min))
        best = "no value on select yet" if view.best is None else f"best {view.best.value:.4g}"
        (line,) = axes.plot(evaluations, lowest, style, color=colour, linewidth=1.5, label=f"{name}: {best}")
        line.set_drawstyle("steps-post")
        if view.best is not None:
            axes.plot([view.best.evaluations], [view.best.value], "*", color=colour, markersize=13, zorder=5)
    axes.set_xlim(left=0)
    axes.set_xlabel("evaluations on the fit split")
    axes.set_ylabel("lowest select objective so far")
    if any(view.objectives != views[0].objectives for view in views):
        figure.suptitle("The runs have different objectives: their values cannot be compared.", x=0.01, ha="left")
    axes.grid(True, color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    return figure
