"""Whole searches with normalised coefficients, with aggregates that look at the losses, and with checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification

from optmerge.config.load import build_config
from optmerge.records import Record, Trajectory
from optmerge.runner.evaluator import Evaluator
from optmerge.runner.problem import open_problem
from optmerge.runner.search import Run, search
from optmerge.runner.teachers import Teachers
from tests.zoo import facts

Settings = Callable[..., dict[str, Any]]


def run(settings: dict[str, Any], root: Path) -> tuple[Run, list[Record]]:
    made = search(build_config(settings, root=root), root=root)
    return made, Trajectory.read(made.folder).records


@pytest.mark.parametrize("normalise", ["sum", "softmax"])
@pytest.mark.parametrize("driver", [{"name": "adam", "lr": 0.1}, {"name": "cma", "population": 4}])
def test_a_normalised_search_starts_within_reach_and_its_recipe_sums_to_one(
    settings: Settings, tmp_path: Path, normalise: str, driver: dict[str, Any]
) -> None:
    space = {"granularity": "layer-wise", "normalise": normalise, "bounds": [-1.0, 3.0]}
    made, records = run(settings(space=space, driver=driver), tmp_path)
    baselines = {r.name: r.value for r in records if r.phase == "baseline" and r.split == "select"}
    reached = ["average", "expert:a", "expert:b"] if normalise == "sum" else ["average"]  # e^x is never 0
    start = min(value for name in reached if (value := baselines[name]) is not None)
    if driver["name"] == "adam":
        first = next(r for r in records if r.phase == "select")
        assert first.value == pytest.approx(start, rel=1e-4)
    assert made.recipe is not None
    np.testing.assert_allclose(np.asarray(made.recipe.coefficients).sum(axis=1), 1.0)
    assert made.result["best"]["select"] <= start * (1 + 1e-4)


@pytest.mark.parametrize("aggregate", ["worst", {"name": "cvar", "share": 0.5}])
def test_the_worst_task_is_what_is_minimised(settings: Settings, tmp_path: Path, aggregate: object) -> None:
    """Of two tasks, half is one: both aggregates are the worst task here."""
    objective = {"terms": [{"name": "expert-kl"}], "aggregate": aggregate}
    made, records = run(settings(objective=objective), tmp_path)
    judged = [record for record in records if record.per_task]
    assert len(judged) > 10
    for record in judged:
        assert record.value == max(record.per_task.values())
    plain, others = run(settings(), tmp_path / "mean")
    assert made.result["best"]["select"] < max(others[plain.result["best"]["record"]].per_task.values()) + 1e-3, (
        "minimising the worst task leaves it better off than minimising the mean"
    )


def test_checkpointing_changes_no_bit_of_a_search(settings: Settings, tmp_path: Path) -> None:
    plain, _ = run(settings(), tmp_path / "plain")
    checked, _ = run(settings(checkpointing=True), tmp_path / "checked")
    assert facts(plain.folder) == facts(checked.folder)


@pytest.mark.parametrize(("aggregate", "passes"), [("mean", "GG"), ("worst", "..G")])
def test_tasks_without_weight_get_no_backward_pass_and_the_mean_no_second_one(
    settings: Settings, tmp_path: Path, aggregate: str, passes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = open_problem(
        build_config(settings(objective={"terms": [{"name": "entropy"}], "aggregate": aggregate}), root=tmp_path)
    )
    evaluator = Evaluator(problem, Teachers.make(problem))
    seen: list[tuple[int, str]] = []
    forward = BertForSequenceClassification.forward

    def watched(self: Any, **inputs: Any) -> Any:
        seen.append((self.num_labels, "G" if torch.is_grad_enabled() else "."))
        return forward(self, **inputs)

    monkeypatch.setattr(BertForSequenceClassification, "forward", watched)
    found = evaluator.evaluate(problem.space.start, "fit", gradient=True)
    assert found.error is None
    assert "".join(kind for _, kind in seen) == passes
    if aggregate == "worst":
        worst = max(found.per_task, key=lambda task: found.per_task[task])
        assert seen[-1][0] == problem.calibration.tasks[worst].num_labels
