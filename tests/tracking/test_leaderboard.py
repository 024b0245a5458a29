"""The leaderboard for people: what its table says, and that Markdown, JSON and picture are written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from optmerge.runner.board import BoardRow, Leaderboard, make_board
from optmerge.runner.result import Scores
from optmerge.tracking.leaderboard import COLOURS, board_figure, board_markdown, board_table, write_leaderboard


def scored(row: BoardRow, share: float) -> tuple[BoardRow, Scores]:
    right = (np.arange(50) < 50 * share).astype(float)
    return replace(row, report={"topics": {"accuracy": float(right.mean())}}), {"topics": {"accuracy": right}}


@pytest.fixture
def board(tmp_path: Path) -> Leaderboard:
    return make_board(
        [
            scored(BoardRow("base", "base", 1.0), 0.5),
            scored(BoardRow("uniform:0.3", "uniform", 0.7), 0.7),
            scored(
                BoardRow(
                    "regmean",
                    "method",
                    0.6,
                    scale=1.0,
                    needs=("weights", "inputs"),
                    seconds=0.25,
                    statistics=2.0,
                    peak=3 << 20,
                ),
                0.8,
            ),
            scored(
                BoardRow(
                    "ties (tuned)",
                    "tuned",
                    0.5,
                    settings={"density": 0.4, "scope": None},
                    scale=1.25,
                    seconds=75.0,
                    evaluations=20,
                ),
                0.74,
            ),
            (BoardRow("iso-c", "method", error="LinAlgError: did | not converge"), {}),
        ],
        folder=tmp_path / "board",
        metric="accuracy",
        seed=0,
        left_out={"slerp": "it merges 1 to 2 experts, and there are 4"},
        objective=["expert-kl"],
        notes=["A sentence."],
    )


def test_the_table_says_what_was_measured(board: Leaderboard) -> None:
    head, rows = board_table(board)
    cells = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert list(cells) == ["ties (tuned)", "regmean", "uniform:0.3", "base", "iso-c"]
    assert cells["regmean"]["over uniform"].startswith("+10.0 [")
    assert cells["regmean"]["found in"] == "0.25 s + 2 s"
    assert cells["regmean"]["memory"] == "3.0 MiB"
    assert cells["regmean"]["needs"] == "weights, inputs"
    assert cells["ties (tuned)"]["at"] == "scale 1.25, density 0.4"
    assert cells["ties (tuned)"]["found in"] == "1 min 15 s"
    assert cells["ties (tuned)"]["evaluations"] == "20"
    assert cells["uniform:0.3"]["over uniform"] == "-"
    assert cells["iso-c"]["select"] == "failed"


def test_the_page_says_what_failed_and_what_is_left_out(board: Leaderboard) -> None:
    page = board_markdown(board)
    assert "difference of that mean to uniform:0.3" in page
    assert "- iso-c: LinAlgError: did | not converge" in page
    assert "- `slerp`: it merges 1 to 2 experts, and there are 4." in page
    assert "- A sentence." in page


def test_everything_is_written(board: Leaderboard) -> None:
    page = write_leaderboard(board)
    assert page.read_text() == board_markdown(board)
    facts = json.loads((board.folder / "leaderboard.json").read_text())
    assert [line["name"] for line in facts["lines"]] == [line.row.name for line in board.lines]
    assert facts["lines"][0]["settings"] == {"density": 0.4, "scope": None}
    assert facts["left_out"] == dict(board.left_out)
    assert (board.folder / "leaderboard.png").read_bytes().startswith(b"\x89PNG")


def test_bars_are_the_differences_in_points(board: Leaderboard) -> None:
    (axes,) = board_figure(board).axes
    bars = [patch.get_width() for patch in axes.patches if isinstance(patch, Rectangle)]
    assert bars == pytest.approx([4.0, 10.0, 0.0, -20.0])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ties (tuned)", "regmean", "uniform:0.3", "base"]
    assert axes.patches[0].get_facecolor()[:3] == pytest.approx(
        tuple(int(COLOURS["tuned"][place : place + 2], 16) / 255 for place in (1, 3, 5))
    )
