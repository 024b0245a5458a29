"""The leaderboard's benchmark: pages of their own for every suite, and what it offers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.leaderboard import options_of, write
from benchmarks.quality_suites import SUITES, Suite
from optmerge.runner.board import BoardRow, make_board


def test_a_suite_has_a_page_and_a_picture_of_its_own(tmp_path: Path) -> None:
    suite = Suite("digits", "small ViTs", tmp_path, {}, {}, {}, fit=3, select=2, report=4)
    row = BoardRow("average", "uniform", 0.5, report={"a": {"accuracy": 0.75}})
    board = make_board(
        [(row, {"a": {"accuracy": np.array([1.0, 1.0, 1.0, 0.0])}})],
        folder=tmp_path / "elsewhere",
        metric="accuracy",
        seed=0,
        left_out={},
        objective=["expert-kl"],
    )
    write(suite, board, tmp_path / "pages", ["Command: `x`"])
    page = (tmp_path / "pages" / "digits.md").read_text()
    assert page.startswith("# Leaderboard: small ViTs\n")
    assert "](digits.png)" in page
    assert "- 3 fit, 2 select and 4 report examples a task\n- Command: `x`\n" in page
    assert (tmp_path / "pages" / "digits.png").exists()


def test_all_suites_are_measured_unless_some_are_named() -> None:
    assert options_of().parse_args([]).only == list(SUITES)
    assert options_of().parse_args(["--only", "demo", "--tune", "5"]).tune == 5
