from __future__ import annotations

import numpy as np
import pytest

from optmerge.drivers.box_quadratic import box_step


@pytest.mark.parametrize("seed", range(20))
def test_the_step_meets_the_conditions_of_a_minimum(seed: int) -> None:
    generator = np.random.default_rng(seed)
    size = int(generator.integers(1, 30))
    roots = generator.standard_normal((size, size)) * np.logspace(0, -3, size)
    matrix = roots.T @ roots + 1e-6 * np.eye(size)
    gradient = generator.standard_normal(size)
    low, high = -generator.uniform(0, 0.3, size), generator.uniform(0, 0.3, size)
    low[0] = 0.0
    step = box_step(matrix, gradient, low, high)
    assert (low <= step).all()
    assert (step <= high).all()
    slope = gradient + matrix @ step
    inside = (step > low) & (step < high)
    assert np.abs(slope[inside]).max(initial=0.0) < 1e-8
    assert (slope[step == low] >= -1e-8).all()
    assert (slope[(step == high) & (low < high)] <= 1e-8).all()


def test_without_a_bound_in_the_way_it_is_the_newton_step() -> None:
    matrix, gradient = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([1.0, -1.0])
    far = np.full(2, 100.0)
    np.testing.assert_allclose(box_step(matrix, gradient, -far, far), -np.linalg.solve(matrix, gradient))


def test_where_nothing_is_lower_nothing_moves() -> None:
    assert not box_step(np.eye(2), np.array([1.0, -1.0]), np.zeros(2), np.zeros(2)).any()
    assert not box_step(np.eye(2), np.zeros(2), -np.ones(2), np.ones(2)).any()
