"""A leaderboard as people read it: a table, Markdown, JSON, and bars.

    head, rows = board_table(board)
    write_leaderboard(board)          # leaderboard.json, leaderboard.md and leaderboard.png in its folder

Rows are in the order of the select objective. Bars show the report split's difference to the best uniform merge, which
starts at zero, with its paired interval.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from optmerge.atomic import atomic_write
from optmerge.config.methods import METHOD_CONFIGS
from optmerge.runner.board import TUNED, BoardRow, Leaderboard, Line
from optmerge.tracking.markdown import NONE, number, ranged, score, signed, table
from optmerge.tracking.plots import save_figure
from optmerge.tracking.standing import duration

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    "base": "#7F7F7F",
    "expert": "#9FB4C7",
    "uniform": "#56B4E9",
    "method": "#0072B2",
    "tuned": "#009E73",
    "search": "#D55E00",
}

LEAST = 0.005  # seconds of gathering statistics that are worth telling

_ROW = 0.24  # inches
_TALLEST = 24.0


def board_table(board: Leaderboard) -> tuple[list[str], list[list[str]]]:
    """Titles, and a row of cells for each line."""
    head = [
        "",
        "kind",
        "select",
        f"mean {board.metric}",
        "worst task",
        "over uniform",
        "found in",
        "memory",
        "evaluations",
        "needs",
        "at",
    ]
    return head, [_cells(line) for line in board.lines]


def legend(board: Leaderboard) -> list[str]:
    """What the columns mean, a sentence each."""
    told = [
        f"Ordered by the objective on select ({' + '.join(board.objective)}; lower is better). The report split chose "
        "nothing: every row was scored on it once.",
        f"mean {board.metric}: mean over the tasks' report examples, with its 95 % bootstrap interval; worst task: "
        "the lowest one.",
    ]
    if board.uniform is not None:
        told.append(
            f"over uniform: difference of that mean to {board.uniform}, the uniform merge that select would choose, in "
            "points, with the 95 % interval of a paired bootstrap on the same examples."
        )
    told += [
        "found in: of a method, the seconds to compute its delta and write it to disk, and behind the plus those of "
        "gathering what it needs of calibration data, which methods share; of a tuned method and of a search, all that "
        "it took to find it.",
        "memory: the most anonymous memory that making the method's delta took, above what the process held before "
        "(sampled every 5 ms; pages of mapped files are not counted).",
    ]
    return [*told, *board.notes]


def board_markdown(board: Leaderboard, *, title: str | None = None, picture: str = "leaderboard.png") -> str:
    """The whole page.

    Args:
        board: What was measured.
        title: Its heading; None names the folder.
        picture: Where the bars lie, relative to the page.
    """
    head, rows = board_table(board)
    parts = [
        f"# {title or f'Leaderboard: {board.folder.name}'}",
        table(head, rows, left=(0, 1, 4, 9, 10)),
        "\n".join(f"- {sentence}" for sentence in legend(board)),
        f"![Difference to the best uniform merge]({picture})",
    ]
    failed = [line.row for line in board.lines if line.row.error]
    if failed:
        parts.append("Failed:\n\n" + "\n".join(f"- {row.name}: {row.error}" for row in failed))
    if board.left_out:
        listed = "\n".join(f"- `{name}`: {reason}." for name, reason in board.left_out.items())
        parts.append(f"Methods that are left out:\n\n{listed}")
    return "\n\n".join(parts) + "\n"


def write_leaderboard(board: Leaderboard) -> Path:
    """Write JSON, Markdown and bars into the leaderboard's folder, and give the path of the Markdown.

    Raises:
        RunError: The disk refuses.
    """
    folder = board.folder
    atomic_write(folder / "leaderboard.json", json.dumps(board.to_dict(), indent=1, allow_nan=False) + "\n")
    save_figure(board_figure(board), folder / "leaderboard.png")
    path = folder / "leaderboard.md"
    atomic_write(path, board_markdown(board))
    return path


def board_figure(board: Leaderboard) -> Figure:
    """One bar per row that has values: its difference to the best uniform merge in points, with the interval."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    lines = [line for line in board.lines if line.mean is not None]
    values = [line.difference or (0.0, 0.0, 0.0) for line in lines]
    figure = Figure(figsize=(9.0, min(_TALLEST, 1.6 + _ROW * len(lines))), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(lines))
    axes.barh(
        places,
        [100 * value[0] for value in values],
        xerr=[
            [100 * max(0.0, value[0] - value[1]) for value in values],
            [100 * max(0.0, value[2] - value[0]) for value in values],
        ],
        color=[COLOURS[line.row.kind] for line in lines],
        error_kw={"linewidth": 0.9, "ecolor": "#333333"},
        height=0.7,
    )
    axes.set_yticks(places, [line.row.name for line in lines], fontsize=7)
    axes.set_ylim(len(lines) - 0.4, -0.6)  # the best on select on top
    axes.axvline(0.0, color="#000000", linewidth=0.8)
    for place, line in enumerate(lines):
        assert line.mean is not None
        axes.annotate(
            f"{score(line.mean[0])}   {number(line.row.select)}",
            (1.01, place),
            xycoords=axes.get_yaxis_transform(),
            va="center",
            fontsize=7,
            annotation_clip=False,
        )
    axes.set_title(f"mean {board.metric}, select", loc="right", fontsize=7)
    axes.set_xlabel(f"{board.metric} on report over {board.uniform}, in points", fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    axes.grid(True, axis="x", color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)
    kinds = dict.fromkeys(line.row.kind for line in lines)
    axes.legend(
        handles=[Patch(color=COLOURS[kind], label=kind) for kind in COLOURS if kind in kinds],
        fontsize=7,
        frameon=False,
        ncols=len(kinds),
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
    )
    return figure


def _cells(line: Line) -> list[str]:
    row = line.row
    mean = None if line.mean is None else line.mean[0]
    return [
        row.name,
        row.kind,
        number(row.select) if row.error is None else "failed",
        ranged(mean, None if line.mean is None else line.mean[1:]),
        NONE if line.worst is None else f"{line.worst[0]} {score(line.worst[1])}",
        NONE if line.difference is None else _apart(line.difference),
        _found_in(row),
        NONE if row.peak is None else f"{row.peak / 2**20:,.1f} MiB",
        str(row.evaluations),
        ", ".join(row.needs),
        _at(row),
    ]


def _apart(difference: tuple[float, float, float]) -> str:
    mean, low, high = difference
    return f"{signed(mean)} [{signed(low)}, {signed(high)}]"


def _found_in(row: BoardRow) -> str:
    if row.seconds is None:
        return NONE
    told = _seconds(row.seconds)
    return f"{told} + {_seconds(row.statistics)}" if row.statistics >= LEAST else told


def _seconds(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 10 else duration(seconds)


def _at(row: BoardRow) -> str:
    """The scale, and of a tuned method what was chosen beside it."""
    if row.scale is None:
        return ""
    told = [f"scale {row.scale:.3g}"]
    if row.kind == "tuned":
        tuned = METHOD_CONFIGS[row.name.removesuffix(TUNED)].tuned()
        told += [f"{key} {row.settings[key]:.3g}" for key in tuned if isinstance(row.settings.get(key), (int, float))]
    return ", ".join(told)
