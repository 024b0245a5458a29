"""Alarms and signals as the views see them."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from optmerge.tracking.evidence_plots import results_figure, signals_figure
from optmerge.tracking.plots import save_figure
from optmerge.tracking.signals import alarm_settings, curves
from optmerge.tracking.terminal import TerminalSink
from optmerge.tracking.view import RunView
from optmerge.tracking.wandb_rows import RowMaker


def test_a_collapsed_iterate_is_no_best_one_unless_alarms_only_warn(fake) -> None:
    collapsed = fake(collapse_at=4).baselines().search(12).close()
    view = RunView.open(collapsed.folder)
    assert view.best is not None
    assert view.best.evaluations <= 4
    lowest = min(view.select, key=lambda point: (point.value, point.record))
    assert lowest.evaluations > 4
    update = {"alarms": {"collapse": "warn"}}
    warned = fake("warned", collapse_at=4, settings_update=update).baselines().search(12).close()
    assert RunView.open(warned.folder).best == lowest
    assert alarm_settings(RunView.open(warned.folder)).collapse == "warn"


def test_curves_are_what_the_alarm_compares(fake) -> None:
    view = RunView.open(fake(collapse_at=2).baselines().search(3).close().folder)
    found = curves(view)
    assert found["agreement"]["sentiment"] == ((1, 1.0), (2, pytest.approx(0.801 / 0.8)), (3, pytest.approx(0.5)))
    assert found["top-share"]["sentiment"][-1] == (3, pytest.approx(0.7))
    assert found["marginal-entropy"]["author"][0] == (1, pytest.approx(0.9 / 0.95))
    assert curves(RunView.open(fake("old", signals=False).baselines().search(3).close().folder)) == {}


def test_signals_are_drawn_with_thresholds_and_the_alarm(fake) -> None:
    view = RunView.open(fake(collapse_at=4).baselines().search(8).close().folder)
    panels = signals_figure(view).axes
    heights = [[line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"] for axes in panels]
    assert heights == [[0.9], [0.2], [0.5]]
    for axes in panels:
        assert sum(line.get_label() in ("sentiment", "author") for line in axes.lines) == 2
        assert [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "-"][-1] == 5  # the alarm


def test_scores_are_drawn_with_error_bars(fake, tmp_path) -> None:
    view = RunView.open(fake().baselines().search(5).finish().folder)
    axes = results_figure(view).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()][-1] == "adam"
    assert len(axes.containers) == len(view.rows)
    (bars,) = axes.containers[-1].lines[2]
    low, high = bars.get_segments()[0][:, 0]
    assert (low, high) == (pytest.approx(0.807), pytest.approx(0.847))
    for name in ("a.png", "b.png"):
        save_figure(results_figure(view), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_terminal_says_an_alarm_once_and_keeps_it_in_view(fake) -> None:
    out = io.StringIO()
    sink = TerminalSink(Console(file=out, force_terminal=False, width=200))
    run = fake(collapse_at=2).baselines()
    sink.start(run.folder)
    run.on_record = sink.record
    run.search(6).close()
    assert out.getvalue().count("ALARM (collapse): task sentiment collapses") == 1
    assert "ALARM collapse" in sink.line()


def test_rows_for_the_tracker(fake) -> None:
    run = fake(collapse_at=1).baselines().search(2)
    run.add(
        phase="report", driver="adam", split="report", value=None, name="adam", metrics={"author": {"accuracy": 0.8}}
    )
    run.add(
        phase="report", driver="adam", split="report", value=None, name="adam:2", metrics={"author": {"accuracy": 0.7}}
    )
    run.add(
        phase="report", driver="adam", split="select", value=0.4, name="adam", metrics={"author": {"expert-kl": 0.4}}
    )
    run.close()
    maker = RowMaker(run.variables)
    rows = [maker.row(record) for record in run.records]
    fit, select = (next(row for row in rows if row["phase"] == phase) for phase in ("search", "select"))
    assert fit["signal/fit/agreement/author"] == 0.8
    assert select["signal/select/top-share/sentiment"] == 0.3
    assert "alarm/collapse" not in select
    assert rows[-4]["alarm/collapse"] == "task sentiment collapses"
    assert rows[-4]["objective/best"] == select["select/value"]
    assert rows[-3]["report/author/accuracy"] == 0.8
    assert rows[-2]["finalist/2/author/accuracy"] == 0.7
    assert not any(key.startswith(("report/", "select/")) for key in rows[-1])
