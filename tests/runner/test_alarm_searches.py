"""Alarms in whole searches: entropy with large steps collapses on a tiny conflicting problem, expert-kl does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optmerge.config.load import build_config
from optmerge.merging.recipe import Recipe
from optmerge.records import Trajectory
from optmerge.runner.alarms import by_task
from optmerge.runner.search import Run, search

Settings = Callable[..., dict[str, Any]]


def run(settings: Settings, root: Path, term: str, lr: float, **changes: Any) -> Run:
    made = settings(
        objective={"terms": [{"name": term}]},
        driver={"name": "adam", "lr": lr},
        space={"granularity": "tensor-wise", "bounds": [-3, 3]},
        budget={"evaluations": 12, "finalists": 1},
        baselines={"grid": [0.3]},
        **changes,
    )
    return search(build_config(made, root=root), root=root)


def test_entropy_with_large_steps_stops_with_a_reason_and_keeps_the_best_sound_iterate(
    settings: Settings, tmp_path: Path
) -> None:
    made = run(settings, tmp_path, "entropy", 0.3)
    records = Trajectory.read(made.folder).records
    assert made.result["reason"].startswith("task b collapses on ")
    assert made.result["evaluations"] < 12
    (alarm,) = made.result["alarms"]
    assert (alarm["kind"], alarm["sentence"]) == ("collapse", made.result["reason"])
    assert records[alarm["record"]].alarms == {"collapse": alarm["sentence"]}
    best = records[made.result["best"]["record"]]
    assert not best.alarms
    assert best.id < alarm["record"]
    assert Recipe.load(made.folder / "recipe.yaml").coefficients.any()


def test_restore_goes_on_with_smaller_steps(settings: Settings, tmp_path: Path) -> None:
    made = run(settings, tmp_path, "entropy", 0.3, alarms={"collapse": "restore"})
    steps = [record for record in Trajectory.read(made.folder).records if record.phase == "search"]
    rates = [record.info["lr"] for record in steps]
    assert rates[0] == pytest.approx(0.3)
    assert rates[-1] == pytest.approx(0.03)


@pytest.mark.parametrize("lr", [0.05, 0.3])
def test_expert_kl_raises_nothing(settings: Settings, tmp_path: Path, lr: float) -> None:
    made = run(settings, tmp_path, "expert-kl", lr)
    assert made.result["reason"] == "the budget of 12 evaluations is used up"
    assert made.result["alarms"] == []


def test_signals_are_in_every_record_and_those_of_experts_are_exact(settings: Settings, tmp_path: Path) -> None:
    made = run(settings, tmp_path, "expert-kl", 0.05)
    records = Trajectory.read(made.folder).records
    for record in records:
        for name in ("agreement", "top-share", "marginal-entropy", "expert-top-share", "expert-marginal-entropy"):
            assert set(by_task(record.signals, name)) == {"a", "b"}
        assert by_task(record.signals, "agreement") == pytest.approx(
            {
                task: values.get("agreement", record.signals[f"agreement/{task}"])
                for task, values in record.metrics.items()
            }
        )
        assert ("at-bound" in record.signals) == (record.phase in ("search", "select"))
    expert = next(record for record in records if record.name == "expert:a" and record.split == "select")
    for name in ("top-share", "marginal-entropy"):
        assert expert.signals[f"{name}/a"] == pytest.approx(expert.signals[f"expert-{name}/a"], rel=1e-5)
    base = next(record for record in records if record.name == "base")
    assert (base.signals["row-sum/mean"], base.signals["row-sum/max"]) == (0.0, 0.0)
