from __future__ import annotations

import numpy as np
import pytest

from optmerge.drivers.simplex import project_capped


@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_nearest_point(seed: int) -> None:
    generator = np.random.default_rng(seed)
    size = int(generator.integers(1, 12))
    point, caps = generator.normal(0.3, 1.0, size), generator.uniform(0, 1, size)
    total = float(generator.uniform(0, 2))
    found = project_capped(point, caps, total)
    assert (found >= 0).all()
    assert (found <= caps).all()
    assert found.sum() <= total + 1e-12
    for _ in range(50):  # the angle to every other point of the set is not acute
        other = np.minimum(generator.dirichlet(np.ones(size)) * total, caps)
        assert (point - found) @ (other - found) < 1e-9


def test_known_points() -> None:
    ones = np.ones(3)
    assert project_capped(np.array([0.2, 0.3, -1.0]), ones, 1.0).tolist() == [0.2, 0.3, 0.0]
    assert project_capped(np.array([2.0, 2.0, 0.0]), ones, 1.0).tolist() == [0.5, 0.5, 0.0]
    assert project_capped(np.array([5.0, 1.0, 1.0]), np.array([0.4, 1.0, 1.0]), 1.0) == pytest.approx([0.4, 0.3, 0.3])
    assert project_capped(ones, ones, 0.0).tolist() == [0.0, 0.0, 0.0]
