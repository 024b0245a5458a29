"""The trajectories of several runs in one picture."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import pytest

from optmerge.errors import RunError
from optmerge.tracking.compare_plots import overlay_figure
from optmerge.tracking.plots import save_figure
from optmerge.tracking.view import RunView


def test_each_run_is_a_line_of_its_lowest_select_value_so_far(fake) -> None:
    folders = [fake(name, seed=seed).baselines().search(8).finish().folder for seed, name in enumerate("ab")]
    axes = overlay_figure(folders).axes[0]
    lines = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
    stars = [line for line in axes.lines if line.get_marker() == "*"]
    assert len(lines) == len(stars) == 2
    for folder, line, star in zip(folders, lines, stars, strict=True):
        view = RunView.open(folder)
        assert view.best is not None
        assert list(line.get_xdata()) == [point.evaluations for point in view.select]
        assert list(line.get_ydata()) == list(accumulate((point.value for point in view.select), min))
        assert (star.get_xdata()[0], star.get_ydata()[0]) == (view.best.evaluations, view.best.value)
        assert line.get_label() == f"{folder.name}: best {view.best.value:.4g}"
    assert lines[0].get_color() != lines[1].get_color()


def test_a_run_without_a_value_is_named_all_the_same(fake) -> None:
    folders = [fake("a").baselines().search(4).finish().folder, fake("b").close().folder]
    labels = [text.get_text() for text in overlay_figure(folders).axes[0].get_legend().get_texts()]
    assert labels[1] == "b: no value on select yet"


@pytest.mark.parametrize("same", [True, False])
def test_values_of_different_objectives_are_said_to_be_so(fake, same: bool) -> None:
    other = {} if same else {"settings_update": {"objective": {"terms": [{"name": "entropy", "weight": 1.0}]}}}
    folders = [fake("a").search(3).close().folder, fake("b", **other).search(3).close().folder]
    title = overlay_figure(folders)._suptitle
    assert (title is None) == same
    assert same or "different objectives" in title.get_text()


def test_many_runs_can_be_told_apart(fake) -> None:
    folders = [fake(f"run-{index}").search(2).close().folder for index in range(10)]
    lines = [line for line in overlay_figure(folders).axes[0].lines if line.get_drawstyle() == "steps-post"]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 10


def test_the_same_runs_give_the_same_bytes(fake, tmp_path: Path) -> None:
    folders = [fake(name).baselines().search(4).finish().folder for name in "ab"]
    for name in ("one.png", "two.png"):
        save_figure(overlay_figure(folders), tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_nothing_to_draw() -> None:
    with pytest.raises(RunError, match="at least one"):
        overlay_figure([])
