"""Pools: what the oracle chooses on searches over tiny models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optmerge.config.load import build_config
from optmerge.errors import ConfigError, RunError, RunFailed, RunInterrupted
from optmerge.records import Evaluation, Trajectory
from optmerge.runner.pool import Pool, measure_pool

Settings = Callable[..., dict[str, Any]]

ROUNDS = 6


def measured(made: dict[str, Any], folder: Path, **others: Any) -> Pool:
    return measure_pool(build_config(made, root=folder), root=folder, rounds=ROUNDS, **others)


def many(settings: Settings, zoo: Path, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """Two experts with tasks, a copy of the first, and the base itself as an expert that is of no use."""
    for name in ("twin", "idle"):
        shutil.copytree(zoo / ("one" if name == "twin" else "base"), tmp_path / name, dirs_exist_ok=True)
    made = settings(**changes)
    made["experts"] |= {"twin": str(tmp_path / "twin"), "idle": str(tmp_path / "idle")}
    return made


@pytest.fixture
def pool(language_settings: Settings, language_zoo: Path, tmp_path: Path) -> Pool:
    return measured(many(language_settings, language_zoo, tmp_path), tmp_path)


def test_experts_that_lower_the_objective_come_first(pool: Pool) -> None:
    assert pool.points == ROUNDS
    ranked = [expert.name for expert in pool.experts]
    assert ranked[-1] == "idle"
    assert pool.experts[-1].fall == pool.experts[-1].picked == pool.experts[-1].weight == 0.0
    assert {"a", "b"} <= {expert.name for expert in pool.experts if expert.fall > 0}
    assert {expert.name: expert.tasks for expert in pool.experts} == {
        "a": ("a",), "b": ("b",), "twin": (), "idle": ()
    }  # fmt: skip
    falls = [expert.fall for expert in pool.experts]
    assert falls == sorted(falls, reverse=True)


def test_choices_add_up_and_are_those_of_the_recorded_gradients(pool: Pool) -> None:
    assert sum(expert.picked for expert in pool.experts) + pool.none_picked == pytest.approx(1.0)
    for expert in pool.experts:
        assert list(expert.by_group) == list(pool.groups)
        assert np.mean(list(expert.by_group.values())) == pytest.approx(expert.picked)
    records = [record for record in Trajectory.read(pool.folder).records if record.phase == "search"]
    assert len(records) == ROUNDS
    first = records[0]
    assert first.vector is not None
    assert first.gradient is not None
    assert not first.vector.any()  # from the base
    assert sum(expert.at_base for expert in pool.experts) == pytest.approx(-first.gradient.sum())
    by_name = {expert.name: expert for expert in pool.experts}
    assert by_name["a"].at_base == pytest.approx(by_name["twin"].at_base, rel=1e-4)


def test_a_measurement_goes_on_where_it_was_stopped(
    language_settings: Settings, language_zoo: Path, tmp_path: Path
) -> None:
    made = many(language_settings, language_zoo, tmp_path, output="whole")
    whole = measured(made, tmp_path)
    calls = iter(range(100))
    made = many(language_settings, language_zoo, tmp_path, output="parts")
    with pytest.raises(RunInterrupted, match="enough"):
        measured(made, tmp_path, stop=lambda: "enough" if next(calls) == 3 else None)
    again = measured(made, tmp_path)
    assert again.experts == whole.experts
    told: list[str] = []
    assert measured(made, tmp_path, progress=lambda stage, done, total: told.append(stage)) == again
    assert "points" not in told  # nothing was measured anew


def test_another_search_in_the_folder_is_refused(
    language_settings: Settings, language_zoo: Path, tmp_path: Path
) -> None:
    measured(language_settings(), tmp_path)
    with pytest.raises(RunError, match=r"run-pool holds the choices of another search.*--set output"):
        measured(language_settings(objective={"terms": [{"name": "jensen-shannon"}]}), tmp_path)


def test_points_that_all_fail_are_no_measurement(
    language_settings: Settings, language_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = Evaluation(float("nan"), error="no room")
    monkeypatch.setattr("optmerge.runner.pool._Choices.fit", lambda choices, candidate: failed)
    config = build_config(language_settings(), root=tmp_path)
    with pytest.raises(RunFailed, match=r"No point gave a gradient.*no room"):
        measure_pool(config, root=tmp_path, rounds=1)


def test_one_expert_is_no_pool(settings: Settings, tmp_path: Path) -> None:
    made = settings()
    del made["experts"]["b"], made["tasks"]["b"]
    with pytest.raises(ConfigError, match="nothing to choose from"):
        measured(made, tmp_path)
    assert not (tmp_path / "run-pool").exists()


def test_it_is_plain_data(pool: Pool, tmp_path: Path) -> None:
    from optmerge.tracking.pool import pool_rows, write_pool

    path = write_pool(pool)
    lines = path.read_text().splitlines()
    assert lines[0].startswith("rank,expert,fall,picked,at_base,weight,tasks,")
    assert len(lines) == 1 + len(pool.experts) == 1 + len(pool_rows(pool))
    found = json.loads((path.parent / "pool.json").read_text())
    assert [expert["name"] for expert in found["experts"]] == [expert.name for expert in pool.experts]
    assert (path.parent / "pool.png").stat().st_size > 1000
