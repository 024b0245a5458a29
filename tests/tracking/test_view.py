"""RunView on runs in every state."""

from __future__ import annotations

import fcntl
import logging
import shutil

import numpy as np
import pytest

from optmerge.errors import RunError
from optmerge.tracking.view import RunView


def test_finished_run(fake) -> None:
    run = fake().baselines().search().finish()
    view = RunView.open(run.folder)
    selects = [r for r in run.records if r.phase == "select"]
    best = min(selects, key=lambda r: r.value)
    assert view.status == "finished"
    assert (view.best.value, view.best.record) == (best.value, best.id)
    assert view.evaluations == 30 == len(view.fit)
    assert view.select[4].evaluations == 5
    assert view.search_row.mean == pytest.approx(0.827)
    assert view.best_baseline == ("method:iso-c:1.4", 0.5)
    assert view.recipe is not None
    assert view.coefficients.values.shape == (32, 3)
    assert 0 < view.search_seconds < view.seconds


def test_the_variables_of_a_normalised_space_are_not_shown_as_coefficients(fake) -> None:
    update = {"space": {"granularity": "tensor-wise", "normalise": "softmax"}}
    run = fake(settings_update=update).baselines().search(10)
    assert RunView.open(run.folder).coefficients is None
    run.finish()
    assert RunView.open(run.folder).coefficients is not None


def test_running_run_gives_rows_and_coefficients_from_the_trajectory(fake) -> None:
    run = fake().baselines().search(10)
    with open(run.folder / ".lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        view = RunView.open(run.folder)
        assert view.status == "running"
    run.close()
    assert view.recipe is None
    assert view.search_row is None
    assert {row.name for row in view.rows if row.chosen} == {
        "base",
        "expert:sentiment",
        "uniform:0.3",
        "method:iso-c:1.4",
    }
    best = run.records[view.best.record].vector
    assert np.array_equal(view.coefficients.values, best.reshape(32, 3))


def test_killed_run_counts_as_interrupted(fake) -> None:
    view = RunView.open(fake().baselines().search(3).close().folder)
    assert view.status == "interrupted"
    assert "without a word" in view.reason


@pytest.mark.parametrize("status", ["interrupted", "failed"])
def test_ended_without_a_result(fake, status: str) -> None:
    view = RunView.open(fake().baselines().search(3).ended(status, "because").folder)
    assert (view.status, view.reason, view.evaluations) == (status, "because", 3)


def test_run_that_has_evaluated_nothing(fake) -> None:
    run = fake().close()
    (run.folder / "trajectory.jsonl").unlink()
    view = RunView.open(run.folder)
    assert (view.best, view.rows, view.seconds, view.coefficients, view.metric) == (None, (), 0.0, None, "agreement")


def test_failed_evaluations_have_no_point(fake) -> None:
    view = RunView.open(fake().baselines().search(6, fail=(2,)).close().folder)
    assert len(view.failed) == 1
    assert [point.evaluations for point in view.fit] == [1, 2, 4, 5, 6]


def test_torn_last_line_costs_only_itself(fake, caplog: pytest.LogCaptureFixture) -> None:
    run = fake().baselines().search(4).close()
    with open(run.folder / "trajectory.jsonl", "ab") as handle:
        handle.write(b'{"id": 99, "phase": "sea')
    with caplog.at_level(logging.WARNING):
        assert RunView.open(run.folder).evaluations == 4
    assert "torn" in caplog.text


def test_copied_folder_is_the_same_run(fake, tmp_path) -> None:
    run = fake().baselines().search(5).finish()
    shutil.copytree(run.folder, tmp_path / "elsewhere")
    assert RunView.open(tmp_path / "elsewhere").rows == RunView.open(run.folder).rows


def test_a_folder_without_a_run_is_refused(tmp_path) -> None:
    with pytest.raises(RunError, match=r"no search\.yaml"):
        RunView.open(tmp_path)


def test_metric_without_labels(fake) -> None:
    assert RunView.open(fake(labels=False).baselines().close().folder).metric == "agreement"
