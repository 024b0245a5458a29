"""The non-dominated filter, the hypervolume and the thinning of a front, against their definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from optmerge.runner.pareto import POINTS, Region, non_dominated, thin

# Few different numbers, so that ties and equal rows are frequent.
TABLES = st.tuples(st.integers(0, 12), st.integers(1, 4)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.integers(-3, 3).map(float))
)


def dominates(first: np.ndarray, second: np.ndarray) -> bool:
    return bool((first <= second).all() and (first < second).any())


def volume(values: np.ndarray, reference: np.ndarray) -> float:
    """The exact hypervolume, by inclusion and exclusion of the boxes."""
    total = 0.0
    for size in range(1, len(values) + 1):
        for rows in itertools.combinations(values, size):
            sides = reference - np.max(rows, axis=0)
            total += (-1) ** (size + 1) * float(np.prod(np.maximum(sides, 0.0)))
    return total


@given(TABLES)
def test_a_row_is_kept_if_and_only_if_nothing_dominates_it_and_no_equal_one_came_before(values: np.ndarray) -> None:
    kept = non_dominated(values)
    for i, row in enumerate(values):
        beaten = any(dominates(other, row) for other in values)
        repeated = any((other == row).all() for other in values[:i])
        assert kept[i] == (not beaten and not repeated)


@given(TABLES, st.randoms(use_true_random=False))
def test_the_front_does_not_depend_on_the_order(values: np.ndarray, random) -> None:  # type: ignore[no-untyped-def]
    order = list(range(len(values)))
    random.shuffle(order)
    shuffled = values[order]
    assert {tuple(row) for row in values[non_dominated(values)]} == {
        tuple(row) for row in shuffled[non_dominated(shuffled)]
    }


@given(TABLES)
def test_every_row_is_dominated_by_or_equal_to_one_of_the_front_whose_own_front_it_is(values: np.ndarray) -> None:
    front = values[non_dominated(values)]
    assert non_dominated(front).all()
    for row in values:
        assert (front <= row).all(axis=1).any()


@settings(max_examples=30, deadline=None)
@given(arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 4)), elements=st.floats(0, 1.2)))
def test_the_share_is_the_hypervolume(values: np.ndarray) -> None:
    tasks = values.shape[1]
    region = Region(np.zeros(tasks), np.ones(tasks))
    assert region.share(values) == pytest.approx(volume(values, np.ones(tasks)), abs=0.006)


@given(TABLES)
def test_growth_ends_at_the_share_and_never_falls(values: np.ndarray) -> None:
    tasks = values.shape[1]
    region = Region(np.full(tasks, -3.0), np.full(tasks, 3.5), points=512)
    growth = region.growth(values)
    assert (np.diff(growth) >= 0).all()
    assert [region.share(values[: end + 1]) for end in range(len(values))] == pytest.approx(growth.tolist())


def test_a_region_that_is_no_box_holds_nothing() -> None:
    region = Region(np.array([0.0, 1.0]), np.array([1.0, 1.0]))
    assert region.share(np.zeros((2, 2))) == 0.0
    assert region.growth(np.zeros((2, 2))).tolist() == [0.0, 0.0]


def test_thinning_keeps_the_best_of_each_task_and_spreads_the_others() -> None:
    angles = np.linspace(0, np.pi / 2, 101)
    values = 1 - np.stack([np.cos(angles), np.sin(angles)], axis=1)
    kept = thin(values, 6)
    assert len(kept) == 6
    assert {0, 100} <= set(kept.tolist())
    region = Region(np.zeros(2), np.full(2, 1.1))
    every = [rows for rows in itertools.combinations(range(0, 101, 10), 6) if {0, 100} <= set(rows)]
    best = max(region.share(values[list(rows)]) for rows in every)
    assert region.share(values[kept]) > 0.97 * best
    assert np.diff(kept).max() < 45


@given(TABLES, st.integers(0, 8))
def test_thinning_gives_so_many_different_rows_in_order(values: np.ndarray, count: int) -> None:
    front = values[non_dominated(values)]
    kept = thin(front, count)
    assert len(kept) == min(count, len(front))
    assert (np.diff(kept) > 0).all()
    if len(front) > count >= front.shape[1]:
        assert set(front[kept].min(axis=0)) >= set(front.min(axis=0))


def test_one_region_is_the_same_every_time() -> None:
    values = np.random.default_rng(0).random((20, 5))
    first, second = (Region(np.zeros(5), np.ones(5)).covered(values) for _ in range(2))
    assert first.shape == (20, POINTS)
    assert (first == second).all()
