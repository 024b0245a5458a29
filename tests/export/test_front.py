"""Weights pick a merge from a front."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optmerge.errors import ConfigError, ExportError, RunError
from optmerge.export.api import export
from optmerge.export.front import parse_weights, pick
from tests.export.families import random_recipe

PARTS = {3: (0.1, 0.9, 0.5), 5: (0.5, 0.5, 0.5), 8: (0.9, 0.1, 0.5), 9: (0.9, 0.9, 0.0), 11: (0.0, 0.0, 0.0)}
TASKS = ("code", "news", "maths")


def a_run(folder: Path, parts: dict[int, tuple[float, ...]] = PARTS, *, beaten: tuple[int, ...] = (11,)) -> Path:
    """A run's folder with a front of these select values."""
    members: list[dict[str, Any]] = [
        {
            "record": record,
            "on_front": record not in beaten,
            "select": dict(zip(TASKS, values, strict=True)),
            "report": {task: {"accuracy": 1 - value} for task, value in zip(TASKS, values, strict=True)},
        }
        for record, values in parts.items()
    ]
    folder.mkdir(exist_ok=True)
    (folder / "search.yaml").write_text("version: 1\n")
    (folder / "front.json").write_text(json.dumps({"format": 1, "tasks": TASKS, "members": members}))
    rows = [{"name": "base", "kind": "baseline", "report": {}}, {"name": "adam", "kind": "search", "report": {}}]
    (folder / "result.json").write_text(json.dumps({"metric": "accuracy", "rows": rows, "reason": "done"}))
    return folder


@pytest.mark.parametrize(
    ("weights", "record"),
    [
        ({}, 3),  # 3, 5 and 8 have the same sum
        ({"code": 2.0}, 3),
        ({"news": 2.0}, 8),
        ({"code": 1.0, "news": 1.0, "maths": 9.0}, 9),
        ({"code": 0.0, "news": 0.0}, 9),
        ({"maths": 0.0, "code": 1.0, "news": 1.0}, 3),
    ],
)
def test_the_lowest_weighted_sum_on_select_is_picked(tmp_path: Path, weights: dict[str, float], record: int) -> None:
    picked = pick(a_run(tmp_path), weights)
    assert picked.record == record
    assert picked.recipe == tmp_path / "front" / f"{record}.yaml"
    assert dict(picked.select) == dict(zip(TASKS, PARTS[record], strict=True))
    assert picked.weights == {task: weights.get(task, 1.0) for task in TASKS}


@given(st.lists(st.tuples(*[st.floats(0, 1)] * 3), min_size=1, max_size=6), st.tuples(*[st.floats(0.01, 9)] * 3))
def test_no_other_member_has_a_lower_sum(
    tmp_path_factory: pytest.TempPathFactory, values: list[tuple[float, ...]], weights: tuple[float, ...]
) -> None:
    run = a_run(tmp_path_factory.mktemp("run"), dict(enumerate(values)), beaten=())
    picked = pick(run, dict(zip(TASKS, weights, strict=True)))

    def total(record: int) -> float:
        return math.fsum(weight * value for weight, value in zip(weights, values[record], strict=True))

    assert total(picked.record) <= min(total(record) for record in range(len(values))) + 1e-12


def test_the_scores_are_those_of_the_picked_merge(tmp_path: Path) -> None:
    result = pick(a_run(tmp_path), {"maths": 9.0}).result
    assert result["reason"] == "done"
    assert [row["name"] for row in result["rows"]] == ["base", "front, record 9"]
    assert result["rows"][-1]["mean"] == pytest.approx((0.1 + 0.1 + 1.0) / 3)
    assert result["rows"][-1]["report"]["maths"] == {"accuracy": 1.0}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"cod": 1.0}, r"names the task 'cod'; expected tasks of the run \(code, news, maths\)\. Did you mean 'code'"),
        ({"code": -1.0}, "has code=-1; expected 0"),
        ({"code": math.inf}, "has code=inf"),
        (dict.fromkeys(TASKS, 0.0), "sets every task to 0"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, weights: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pick(a_run(tmp_path), weights)


@pytest.mark.parametrize("text", ["", "a", "a=", "=1", "a=b", "a=1,,b=2", "a=nan", "a=inf"])
def test_text_that_is_no_list_of_weights_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected task=weight, with commas between: a=2,b=1"):
        parse_weights(text)


def test_weights_are_read_with_spaces_and_once() -> None:
    assert parse_weights(" a = 2 ,b=0.5,c=1e-3") == {"a": 2.0, "b": 0.5, "c": 0.001}
    assert parse_weights("x=y=2") == {"x=y": 2.0}
    with pytest.raises(ConfigError, match="names the task 'a' twice"):
        parse_weights("a=1,a=2")


def test_a_folder_without_a_front_and_a_recipe_by_itself_are_refused(tmp_path: Path, family: Any) -> None:
    run = a_run(tmp_path / "run")
    (run / "front.json").unlink()
    with pytest.raises(RunError, match="has no front to pick from"):
        pick(run, {})
    with pytest.raises(RunError, match="is not a run"):
        pick(tmp_path, {})
    with pytest.raises(ExportError, match="give the folder of a run"):
        export(random_recipe(family("bert")), "coefficients", tmp_path / "c.csv", weights={})
