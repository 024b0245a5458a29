"""Whole searches whose driver needs Jacobians: what they count, what is recorded, and resume."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optmerge.config.load import build_config
from optmerge.errors import ConfigError, RunInterrupted
from optmerge.records import Record, Trajectory
from optmerge.runner.search import resume, search
from optmerge.tracking.view import RunView

Settings = Callable[..., dict[str, Any]]

LM: dict[str, Any] = {
    "driver": "levenberg-marquardt",
    "space": {"granularity": "task-wise", "start": 0.3},
    "splits": {"fit": 6, "select": 4, "report": 4},
    "baselines": {"grid": [0.3]},
    "budget": {"evaluations": 14},
    "alarms": {"collapse": "warn"},
}


def fits(folder: Path) -> list[Record]:
    return [record for record in Trajectory.read(folder).records if record.phase == "search"]


def facts(folder: Path) -> list[Any]:
    def values(array: Any) -> Any:
        return None if array is None else array.tolist()

    return [
        (r.id, r.phase, r.split, r.value, values(r.vector), values(r.gradient), values(r.curvature))
        for r in Trajectory.read(folder).records
    ]


def test_a_step_counts_its_neighbours_and_a_stopped_search_goes_on_bit_by_bit(
    settings: Settings, tmp_path: Path
) -> None:
    whole = search(build_config(settings(**LM, output="whole"), root=tmp_path), root=tmp_path)
    records = fits(whole.folder)
    assert len(records) == 4  # of 3 evaluations each
    assert whole.result["evaluations"] == 12
    assert RunView.open(whole.folder).evaluations == 12, "views count as the budget does"
    assert whole.result["reason"] == "2 evaluations are left, and the next step counts 3"
    for record in records:
        assert record.curvature is not None
        assert record.curvature.shape == (2, 2)
        assert np.linalg.eigvalsh(record.curvature).min() >= -1e-9
    lowest = min(record.value for record in records if record.value is not None)
    assert records[0].value is not None
    assert lowest < records[0].value

    total = len(Trajectory.read(whole.folder).records)
    calls = iter(range(100))
    before = sum(
        record.phase == "baseline" and record.split == "report" for record in Trajectory.read(whole.folder).records
    )
    made = build_config(settings(**LM, output="parts"), root=tmp_path)
    with pytest.raises(RunInterrupted):
        search(made, root=tmp_path, stop=lambda: "enough" if next(calls) == before + 2 else None)
    parts = tmp_path / "parts"
    assert len(fits(parts)) == 2
    shutil.rmtree(parts / "state", ignore_errors=True)  # all from the trajectory
    with open(parts / "trajectory.jsonl", "ab") as handle:  # and a line that a kill tore
        handle.write(b'{"id": 99, "curv')
    resume(parts)
    assert facts(parts) == facts(whole.folder)
    assert len(facts(parts)) == total


def test_frank_wolfe_stays_in_the_hull_and_falls(settings: Settings, tmp_path: Path) -> None:
    changes = LM | {
        "driver": "frank-wolfe",
        "space": {"granularity": "layer-wise", "start": 0.0},
        "budget": {"evaluations": 10},
    }
    run = search(build_config(settings(**changes), root=tmp_path), root=tmp_path)
    records = fits(run.folder)
    values = [record.value for record in records if record.value is not None]
    assert min(values) < 0.9 * values[0]
    assert run.recipe is not None
    assert (run.recipe.coefficients >= 0).all()
    assert (run.recipe.coefficients.sum(1) <= 1 + 1e-9).all()


@pytest.mark.parametrize("space", [{"granularity": "model-wise"}, {"granularity": "task-wise", "normalise": "softmax"}])
def test_frank_wolfe_needs_a_variable_for_every_expert(
    settings: Settings, tmp_path: Path, space: dict[str, Any]
) -> None:
    made = build_config(settings(**(LM | {"driver": "frank-wolfe", "space": space})), root=tmp_path)
    with pytest.raises(ConfigError, match="driver is frank-wolfe, which weighs experts against one another"):
        search(made, root=tmp_path)
    assert not (tmp_path / "run").exists()


def test_an_objective_without_a_matrix_is_refused_before_anything_is_written(
    settings: Settings, tmp_path: Path
) -> None:
    terms = {"terms": [{"name": "pseudo-label", "filter": "agreement"}]}
    with pytest.raises(ConfigError, match="pseudo-label is a function of means"):
        search(build_config(settings(**LM, objective=terms), root=tmp_path), root=tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_stage_that_cannot_pay_for_one_step_is_refused_before_anything_is_written(
    settings: Settings, tmp_path: Path
) -> None:
    stages = [{"driver": "adam", "evaluations": 4}, {"driver": "levenberg-marquardt"}]
    made = settings(**(LM | {"schedule": stages, "budget": {"evaluations": 6}}))
    del made["driver"]
    config = build_config(made, root=tmp_path)
    assert config.shares == (4, 2)
    with pytest.raises(ConfigError, match=r"budget.evaluations is 2 \(in a schedule.* counts 3"):
        search(config, root=tmp_path)
    assert not (tmp_path / "run").exists()
