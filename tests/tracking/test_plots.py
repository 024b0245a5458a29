"""Pictures: written, reproducible, and made without matplotlib's global state."""

from __future__ import annotations

import sys
from itertools import pairwise

import numpy as np
import pytest

from optmerge.tracking.coefficients import Coefficients
from optmerge.tracking.plots import _spread, heat_map_figure, save_figure, trajectory_figure
from optmerge.tracking.view import RunView


def _texts(axes) -> str:
    return "\n".join(text.get_text() for text in axes.texts)


def test_trajectory_shows_scores_baselines_and_the_best(fake) -> None:
    run = fake().baselines().search(fail=(3,)).finish()
    axes = trajectory_figure(RunView.open(run.folder)).axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[0].startswith("fit")
    assert labels[1].startswith("select")
    assert "after 30 evaluations" in labels[2] or "best on select" in labels[2]
    assert "method:iso-c:1.4" in _texts(axes)
    assert "uniform:0.3" in _texts(axes)
    assert "uniform:0.2" not in _texts(axes)  # only the best of a family
    assert "higher than shown" in _texts(axes)  # the experts are far above


def test_trajectory_without_an_evaluation(fake) -> None:
    view = RunView.open(fake().close().folder)
    assert "no evaluation yet" in _texts(trajectory_figure(view).axes[0])
    view = RunView.open(fake("second").baselines().close().folder)
    assert "expert:sentiment" in _texts(trajectory_figure(view).axes[0])


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (8, 2), (96, 5), (400, 3)])
def test_heat_map_of_every_size_is_centred_at_zero(rows: int, columns: int) -> None:
    values = np.random.default_rng(0).normal(0.3, 0.2, (rows, columns))
    values[0, 0] = np.nan if rows > 1 else 0.3
    table = Coefficients(
        tuple(f"layer.{i // 16}.{i}" for i in range(rows)),
        tuple(i // 16 for i in range(rows)),
        tuple(f"d{i}" for i in range(columns)),
        values,
    )
    figure = heat_map_figure(table)
    norm = figure.axes[0].images[0].norm
    assert norm.vmin == -norm.vmax
    assert norm.vmax == pytest.approx(np.nanmax(np.abs(values)))
    assert figure.get_figheight() < 30
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == list(table.labels) if rows <= 96 else names[0] == "layer 0"


def test_slices_have_their_mean_and_their_spread_side_by_side() -> None:
    values, spread = np.array([[0.3, -0.4], [0.5, 0.1]]), np.array([[0.0, 0.2], [0.1, 0.05]])
    figure = heat_map_figure(Coefficients(("a", "b"), (0, 1), ("x", "y"), values, spread))
    means, deviations = figure.axes[:2]
    np.testing.assert_array_equal(means.images[0].get_array(), values)
    np.testing.assert_array_equal(deviations.images[0].get_array(), spread)
    assert (deviations.images[0].norm.vmin, deviations.images[0].norm.vmax) == (0.0, 0.2)
    assert [axes.get_ylabel() for axes in figure.axes[2:]] == ["mean over slices", "standard deviation over slices"]


def test_heat_map_of_zeros() -> None:
    figure = heat_map_figure(Coefficients(("a", "b"), (None, None), ("x",), np.zeros((2, 1))))
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["x"]


def test_same_run_same_bytes(fake, tmp_path) -> None:
    view = RunView.open(fake().baselines().search(5).finish().folder)
    for name in ("a.png", "b.png"):
        save_figure(trajectory_figure(view), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["a.png", "b.png"]


def test_pyplot_is_never_imported(fake, tmp_path) -> None:
    if "matplotlib.pyplot" in sys.modules:
        pytest.skip("another test imported pyplot")
    save_figure(trajectory_figure(RunView.open(fake().baselines().close().folder)), tmp_path / "a.png")
    assert "matplotlib.pyplot" not in sys.modules


def test_labels_are_spread_within_the_axis() -> None:
    heights = _spread([0.5, 0.501, 0.98, 0.99], (0.0, 1.0), 0.05)
    assert all(b - a >= 0.0499 for a, b in pairwise(heights))
    assert heights[-1] <= 1.0
    assert _spread([0.1, 0.9], (0.0, 1.0), 0.05) == [0.1, 0.9]
