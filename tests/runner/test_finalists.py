"""Finalists: who they are, what is told of them, and that they are in a search's result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optmerge.config.load import build_config
from optmerge.records import Record, Trajectory
from optmerge.runner.finalists import best_iterates, make_finalists
from optmerge.runner.result import Scored
from optmerge.runner.search import Run, search

Settings = Callable[..., dict[str, Any]]


def select(id: int, value: float | None, digest: str, *, phase: Any = "select", alarm: str = "") -> Record:
    alarms = {"collapse": alarm} if alarm else {}
    return Record(id, phase, "adam", "select", value, vector_sha256=digest, alarms=alarms)


RECORDS = [
    select(0, 0.1, "baseline", phase="baseline"),
    select(1, 0.5, "a"),
    select(2, 0.4, "b"),
    select(3, None, "c"),
    select(4, 0.4, "d"),
    select(5, 0.4, "b"),
    select(6, 0.2, "e", alarm="gone"),
    select(7, 0.6, "f"),
    select(8, 0.1, "g", phase="search"),
]


def test_the_best_distinct_iterates_by_select_the_earliest_of_equals_first() -> None:
    assert [record.id for record in best_iterates(RECORDS, 3)] == [2, 4, 1]
    assert [record.id for record in best_iterates(RECORDS, 99)] == [2, 4, 1, 7]
    assert [record.id for record in best_iterates(RECORDS, 2, collapsed=True)] == [6, 2]


def scored(name: str, rank: int, scores: np.ndarray) -> Scored:
    report = Record(100 + rank, "report", "adam", "report", None, metrics={"t": {"accuracy": float(scores.mean())}})
    return Scored(name, "search", select(rank, 0.1 * rank, name), report, {"t": {"accuracy": scores}})


def test_what_is_told_of_them() -> None:
    right = np.array([1.0, 0.0] * 50)
    best, worse = scored("adam", 1, right), scored("adam:2", 2, np.concatenate([np.zeros(40), right[40:]]))
    first, second = make_finalists([best, worse], "accuracy", seed=0, leads=[(0.1, -0.05, 0.3)])
    assert (first["rank"], first["iterate"], first["record"], first["mean"]) == (1, 1, 101, 0.5)
    assert first["interval"]["low"] < 0.5 < first["interval"]["high"]
    assert "behind" not in first
    assert second["behind"]["difference"] == pytest.approx(0.2)
    assert second["behind"]["low"] > 0
    assert second["lead"] == {"difference": 0.1, "low": -0.05, "high": 0.3}
    (_, unknown) = make_finalists([best, worse], "accuracy", seed=0, leads=[None])
    assert "lead" not in unknown


def run(settings: dict[str, Any], root: Path) -> Run:
    return search(build_config(settings, root=root), root=root)


@pytest.mark.parametrize("driver", ["adam", {"name": "cma", "population": 4}])
def test_a_search_scores_its_finalists_and_keeps_selects_choice(
    settings: Settings, tmp_path: Path, driver: Any
) -> None:
    made = run(settings(driver=driver, objective={"terms": [{"name": "expert-kl"}], "aggregate": "worst"}), tmp_path)
    records = Trajectory.read(made.folder).records
    chosen, *others = made.result["finalists"]
    expected = best_iterates(records, 3)
    assert [finalist["iterate"] for finalist in (chosen, *others)] == [record.id for record in expected]
    assert chosen["iterate"] == made.result["best"]["record"]
    row = made.result["rows"][-1]
    assert (row["kind"], row["record"], row["mean"]) == ("search", chosen["record"], chosen["mean"])
    assert row["interval"] == chosen["interval"]
    for row in made.result["rows"]:
        assert row["interval"]["low"] <= row["mean"] <= row["interval"]["high"]
    for finalist, record in zip(others, expected[1:], strict=True):
        assert finalist["behind"]["difference"] == pytest.approx(chosen["mean"] - finalist["mean"])
        assert finalist["lead"]["difference"] == pytest.approx((record.value or 0.0) - (expected[0].value or 0.0))
        assert finalist["lead"]["low"] <= finalist["lead"]["difference"] <= finalist["lead"]["high"]
    again = [record for record in records if record.phase == "report" and record.split == "select"]
    assert [record.value for record in again] == pytest.approx([record.value for record in expected])


def test_one_finalist_is_scored_once(settings: Settings, tmp_path: Path) -> None:
    made = run(settings(budget={"evaluations": 4, "finalists": 1}), tmp_path)
    assert [record.split for record in Trajectory.read(made.folder).records if record.phase == "report"] == ["report"]
    assert len(made.result["finalists"]) == 1
