"""An evaluation in shares is the evaluation: value, tasks' parts, signals and gradient."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optmerge.config.load import build_config
from optmerge.records import Candidate, Evaluation
from optmerge.runner.evaluator import Evaluator
from optmerge.runner.executor import Job
from optmerge.runner.geometry import make_geometry
from optmerge.runner.look import Look
from optmerge.runner.problem import open_problem
from optmerge.runner.shares import (
    ShareEvaluation,
    ShareJob,
    added_up,
    can_share,
    measure_share,
    second_jobs,
    share_jobs,
    tallied,
)
from optmerge.runner.teachers import Teachers

Settings = Callable[..., dict[str, Any]]
OBJECTIVES: dict[str, dict[str, Any]] = {
    "expert-kl": {"terms": [{"name": "expert-kl"}]},
    "unequal-tasks": {"terms": [{"name": "expert-kl"}, {"name": "entropy"}], "task_weights": {"a": 3.0}},
    "worst-task": {"terms": [{"name": "expert-kl"}], "aggregate": "worst"},
    "summary": {"terms": [{"name": "information-maximisation", "normalise": "none"}, {"name": "expert-kl"}]},
    "coefficients": {"terms": [{"name": "expert-kl"}, {"name": "anchor-l2", "weight": 0.4}]},
}


def opened(settings: dict[str, Any], root: Path) -> Evaluator:
    problem = open_problem(build_config(settings, root=root))
    evaluator = Evaluator(problem, Teachers.make(problem))
    evaluator.geometry = make_geometry(problem, problem.space.start)
    base = np.zeros((problem.space.num_rows, len(problem.directions)))
    for split in ("fit", "select"):
        problem.objective.on(split).set_normalisers(split, evaluator.measure(base, split).means)
    return evaluator


def in_shares(evaluator: Evaluator, job: Job, count: int) -> Evaluation:
    """As workers do it: every job and every answer travels."""

    def measured(share: ShareJob) -> ShareEvaluation:
        found = pickle.loads(pickle.dumps(measure_share(evaluator, pickle.loads(pickle.dumps(share)))))
        assert isinstance(found, ShareEvaluation), found.error
        return found

    jobs = share_jobs(evaluator, job, count)
    found = [measured(share) for share in jobs]
    tally = tallied(evaluator, jobs, found)
    found += [measured(share) for share in second_jobs(evaluator, jobs, tally)]
    return added_up(evaluator, job, tally, found)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("shares", [1, 2, 5])
def test_shares_add_up_to_the_evaluation(settings: Settings, tmp_path: Path, objective: str, shares: int) -> None:
    evaluator = opened(
        settings(objective=OBJECTIVES[objective], space={"granularity": "tensor-wise"}, batch_tokens=64), tmp_path
    )
    space = evaluator.problem.space
    vector = space.start + np.random.default_rng(0).normal(0, 0.05, space.dimension)
    some = {"a": (3, 1, 8), "b": (2, 5, 6, 7, 11, 20)}  # fewer of one task than there may be shares
    for examples in (None, some):
        candidate = Candidate(vector, frozenset({"value", "gradient"}), examples)
        expected = evaluator.fit(candidate)
        found = in_shares(evaluator, Job("fit", candidate), shares)
        assert found.error is None
        assert found.value == pytest.approx(expected.value, abs=1e-6)
        assert found.per_task == pytest.approx(expected.per_task, abs=1e-6)
        assert found.parts == pytest.approx(expected.parts, rel=1e-12)
        assert found.signals == pytest.approx(expected.signals, rel=1e-5, abs=1e-6)
        assert expected.gradient is not None
        assert found.gradient is not None
        scale = np.abs(expected.gradient).max()
        assert scale > 1e-3
        np.testing.assert_allclose(found.gradient, expected.gradient, rtol=0, atol=1e-6 * scale)


def test_select_in_shares(settings: Settings, tmp_path: Path) -> None:
    evaluator = opened(settings(), tmp_path)
    vector = evaluator.problem.space.start
    expected = evaluator.select(vector)
    found = in_shares(evaluator, Job("select", Candidate(vector)), 3)
    assert found.value == pytest.approx(expected.value, abs=1e-6)
    assert found.gradient is None
    assert {task: set(metrics) for task, metrics in found.metrics.items()} == {
        task: set(metrics) for task, metrics in expected.metrics.items()
    }
    for task, metrics in expected.metrics.items():
        assert found.metrics[task] == pytest.approx(metrics, abs=1e-6)


def test_every_example_is_in_one_share_and_shares_are_alike(settings: Settings, tmp_path: Path) -> None:
    evaluator = opened(settings(), tmp_path)
    source = evaluator.problem.calibration.tasks["a"].splits["fit"]
    chosen = (0, 2, 3, 5, 7, 11, 13, 17, 19, 23)
    for examples, expected in ((None, range(24)), ({"a": chosen}, chosen)):
        dealt = [Look("fit", examples, True, False, (number, 3)).positions("a", source) or [] for number in range(3)]
        assert sorted(position for share in dealt for position in share) == sorted(expected)
        lengths = [int(source.examples.lengths.numpy()[list(share)].sum()) for share in dealt]
        assert max(lengths) - min(lengths) <= int(source.examples.lengths.max())


def test_what_is_no_sum_over_examples_is_not_shared(settings: Settings, tmp_path: Path) -> None:
    evaluator = opened(settings(), tmp_path)
    vector = evaluator.problem.space.start
    assert can_share(evaluator, Job("fit", Candidate(vector, frozenset({"gradient"}))))
    assert not can_share(evaluator, Job("fit", Candidate(vector, frozenset({"gradient", "jacobian"}))))
    assert not can_share(evaluator, Job("fit", Candidate(vector, frozenset({"per_example"}))))


def test_a_share_that_fails_is_a_failed_evaluation(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = opened(settings(), tmp_path)
    job = Job("fit", Candidate(evaluator.problem.space.start, frozenset({"gradient"})))
    first, _ = share_jobs(evaluator, job, 2)

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(evaluator, "gradient", fails)
    found = measure_share(evaluator, first)
    assert not isinstance(found, ShareEvaluation)
    assert found.error == "RuntimeError: the device is gone"
