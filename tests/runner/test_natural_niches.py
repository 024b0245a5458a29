"""Natural niches in a whole search: costs by example reach the driver, are recorded, and survive an interruption."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optmerge.config.load import build_config
from optmerge.errors import RunInterrupted
from optmerge.records import Record, Trajectory
from optmerge.runner.search import Run, resume, search
from tests.zoo import facts

Settings = Callable[..., dict[str, Any]]
DRIVER = {"name": "natural-niches", "archive": 4}


def run(settings: dict[str, Any], root: Path, **options: Any) -> Run:
    return search(build_config(settings, root=root), root=root, **options)


def searched(folder: Path) -> list[Record]:
    return [record for record in Trajectory.read(folder).records if record.phase == "search"]


@pytest.mark.parametrize(
    "terms", [[{"name": "expert-kl"}], [{"name": "accuracy", "weight": 0.5}, {"name": "entropy"}]], ids=len
)
def test_costs_by_example_are_those_of_the_objective(
    settings: Settings, tmp_path: Path, terms: list[dict[str, Any]]
) -> None:
    made = run(settings(driver=DRIVER, objective={"terms": terms}), tmp_path)
    records = searched(made.folder)
    assert len(records) == 8
    for record in records:
        assert record.costs is not None
        assert {task: len(costs) for task, costs in record.costs.items()} == {"a": 24, "b": 24}
        for task, costs in record.costs.items():
            assert costs.mean() == pytest.approx(record.per_task[task], rel=1e-6)
    assert any(len(np.unique(costs)) > 1 for record in records for costs in (record.costs or {}).values())
    assert all(record.costs is None for record in Trajectory.read(made.folder).records if record.phase != "search")
    assert all(record.costs is None for record in Trajectory.read(made.folder, vectors=False).records)


def test_seeds_are_the_start_and_each_expert_and_children_mix_them(settings: Settings, tmp_path: Path) -> None:
    made = run(settings(driver=DRIVER), tmp_path)
    vectors = [record.vector for record in searched(made.folder)]
    pairs = [np.unique(vector.reshape(-1, 2), axis=0).tolist() for vector in vectors if vector is not None]
    assert [[1.0, 0.0]] in pairs[:3]  # the start, the best baseline, may be one of them
    assert [[0.0, 1.0]] in pairs[:3]
    assert all(len(pair) <= 2 for pair in pairs), "no mutation and one split point: two mixtures at most"
    assert any(0 < pair[0][0] < 1 for pair in pairs[2:])


@pytest.mark.parametrize("stop_at", [7, 11, 13])
def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(
    settings: Settings, tmp_path: Path, stop_at: int
) -> None:
    whole = run(settings(driver=DRIVER), tmp_path / "whole")
    asked = iter(range(10**6))
    with pytest.raises(RunInterrupted):
        run(settings(driver=DRIVER), tmp_path / "cut", stop=lambda: "asked to" if next(asked) >= stop_at else None)
    again = resume(tmp_path / "cut" / "run")
    assert facts(again.folder) == facts(whole.folder)
    for ours, theirs in zip(searched(again.folder), searched(whole.folder), strict=True):
        assert ours.costs is not None
        assert theirs.costs is not None
        assert {task: costs.tobytes() for task, costs in ours.costs.items()} == {
            task: costs.tobytes() for task, costs in theirs.costs.items()
        }
