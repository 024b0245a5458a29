"""The bootstraps against closed forms, and their invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest

from optmerge.runner.bootstrap import bootstrap, objective_lead, paired_bootstrap


def _scores(seed: int, size: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    hardness = generator.normal(0, 5, size)  # common to both sides, so it must cancel
    return hardness + generator.normal(shift, 1, size), hardness + generator.normal(0, 1, size)


def test_interval_of_one_task_is_the_normal_one() -> None:
    a, b = _scores(1, 800, 0.3)
    interval = paired_bootstrap({"t": a}, {"t": b}, seed=0, resamples=20_000)
    error = (a - b).std() / math.sqrt(len(a))
    assert interval.mean == pytest.approx((a - b).mean())
    assert interval.low == pytest.approx((a - b).mean() - 1.96 * error, abs=0.06 * error)
    assert interval.high == pytest.approx((a - b).mean() + 1.96 * error, abs=0.06 * error)


def test_tasks_count_the_same_whatever_their_size() -> None:
    a1, b1 = _scores(2, 1000, 0.5)
    a2, b2 = _scores(3, 100, -0.5)
    interval = paired_bootstrap({"x": a1, "y": a2}, {"x": b1, "y": b2}, seed=0, resamples=20_000)
    error = math.sqrt((a1 - b1).var() / 1000 + (a2 - b2).var() / 100) / 2
    assert interval.mean == pytest.approx(((a1 - b1).mean() + (a2 - b2).mean()) / 2)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.03)


def test_a_scores_own_interval_is_the_normal_one_and_wider_than_the_paired() -> None:
    a, b = _scores(9, 400, 0.3)
    interval = bootstrap({"t": a}, seed=0, resamples=20_000)
    error = a.std() / math.sqrt(len(a))
    assert interval.mean == pytest.approx(a.mean())
    assert interval.low == pytest.approx(a.mean() - 1.96 * error, abs=0.06 * error)
    assert interval.high == pytest.approx(a.mean() + 1.96 * error, abs=0.06 * error)
    paired = paired_bootstrap({"t": a}, {"t": b}, seed=0)
    assert paired.high - paired.low < 0.5 * (interval.high - interval.low)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({}, "at least one task"),
        ({"x": np.ones((2, 2))}, "one per example"),
        ({"x": np.ones(0)}, "one per example"),
        ({"x": np.array([np.inf])}, "not finite"),
    ],
)
def test_what_has_no_interval_is_refused(scores: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap(scores, seed=0)


def test_level_widens_the_interval() -> None:
    a, b = _scores(4, 300, 0.0)
    narrow, wide = (paired_bootstrap({"t": a}, {"t": b}, seed=0, level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_same_seed_same_interval_and_no_global_generator() -> None:
    a, b = _scores(5, 50, 0.1)
    first = paired_bootstrap({"t": a}, {"t": b}, seed=3)
    state = np.random.get_state()[1].copy()
    assert paired_bootstrap({"t": a}, {"t": b}, seed=3) == first
    assert (np.random.get_state()[1] == state).all()
    assert paired_bootstrap({"t": a}, {"t": b}, seed=4) != first


def test_a_tasks_interval_does_not_depend_on_the_others_or_their_order() -> None:
    a, b = _scores(6, 60, 0.1)
    c, d = _scores(7, 40, 0.2)
    both = paired_bootstrap({"x": a, "y": c}, {"x": b, "y": d}, seed=0)
    swapped = paired_bootstrap({"y": c, "x": a}, {"y": d, "x": b}, seed=0)
    alone = paired_bootstrap({"x": a}, {"x": b}, seed=0)
    assert both.per_task["x"] == alone.per_task["x"] == swapped.per_task["x"]
    assert swapped.low == pytest.approx(both.low)


def test_long_tasks_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = _scores(8, 30, 0.1)
    whole = paired_bootstrap({"t": a}, {"t": b}, seed=0, resamples=100)
    monkeypatch.setattr("optmerge.runner.bootstrap._AT_ONCE", 64)
    assert paired_bootstrap({"t": a}, {"t": b}, seed=0, resamples=100) == whole


def test_decided_leaves_zero_out() -> None:
    ones, zeros = np.ones(20), np.zeros(20)
    assert paired_bootstrap({"t": ones}, {"t": zeros}, seed=0).decided
    assert not paired_bootstrap({"t": ones}, {"t": ones}, seed=0).decided


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ({}, {}, "same tasks"),
        ({"x": np.ones(3)}, {"y": np.ones(3)}, "same tasks"),
        ({"x": np.ones(3)}, {"x": np.ones(4)}, "cannot be paired"),
        ({"x": np.ones(0)}, {"x": np.ones(0)}, "cannot be paired"),
        ({"x": np.array([1.0, np.nan])}, {"x": np.ones(2)}, "not finite"),
    ],
)
def test_what_cannot_be_paired_is_refused(a: dict, b: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(a, b, seed=0)


def test_the_lead_of_an_objective_is_the_paired_bootstrap_where_it_is_a_mean() -> None:
    a, b = _scores(10, 200, 0.0)
    c, d = _scores(11, 80, 0.2)
    ours, theirs = {"x": {"loss": a}, "y": {"loss": c}}, {"x": {"loss": b}, "y": {"loss": d}}

    def mean(means) -> float:
        return (means["x"]["loss"] + means["y"]["loss"]) / 2

    lead = objective_lead(mean, ours, theirs, seed=0, resamples=2000)
    paired = paired_bootstrap({"x": b, "y": d}, {"x": a, "y": c}, seed=0, resamples=2000)
    assert lead == pytest.approx((paired.mean, paired.low, paired.high))


def test_the_lead_of_the_worst_task_is_that_of_resampled_objectives() -> None:
    """The worst of equal tasks is worse than either on average, so its interval is no task's own."""
    a, b = _scores(12, 100, 0.0)
    zeros = np.zeros(100)
    lead = objective_lead(
        lambda means: max(terms["loss"] for terms in means.values()),
        {"x": {"loss": zeros}, "y": {"loss": zeros}},
        {"x": {"loss": a - a.mean()}, "y": {"loss": b - b.mean()}},
        seed=0,
    )
    error = math.hypot(a.std(), b.std()) / 10 / math.sqrt(2)
    assert lead[0] == pytest.approx(0.0, abs=1e-12)
    assert lead[1] > -1.6 * error  # a single task's would reach to -1.96 errors
    assert lead[2] > 1.6 * error
