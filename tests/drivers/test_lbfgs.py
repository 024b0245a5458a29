from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest

from optmerge.config.gradient_drivers import LbfgsConfig
from optmerge.drivers.lbfgs import LbfgsDriver
from optmerge.drivers.variables import Variables
from optmerge.records import Candidate, Evaluation

Evaluate = Callable[[Candidate], Evaluation]
Search = Literal["strong-wolfe", "backtracking"]


def make(config: LbfgsConfig, start: list[float], *, low: float = -9.0, high: float = 9.0) -> LbfgsDriver:
    d = len(start)
    box = Variables(tuple(map(str, range(d))), np.full(d, low), np.full(d, high), np.array(start))
    return LbfgsDriver(config, box, seed=np.random.SeedSequence(0), fit_sizes={}, budget=None)


def search(driver: LbfgsDriver, evaluate: Evaluate, evaluations: int) -> list[float]:
    found: list[float] = []
    while len(found) < evaluations and not driver.stop():
        (candidate,) = driver.ask()
        told = evaluate(candidate)
        driver.tell([candidate], [told])
        found.append(told.value)
    return found


def rosenbrock(candidate: Candidate) -> Evaluation:
    x, y = candidate.vector
    gradient = np.array([-2 * (1 - x) - 400 * x * (y - x * x), 200 * (y - x * x)])
    return Evaluation(float((1 - x) ** 2 + 100 * (y - x * x) ** 2), gradient=gradient)


@pytest.mark.parametrize("line_search", ["strong-wolfe", "backtracking"])
def test_it_follows_a_curved_valley_to_its_end(line_search: Search) -> None:
    driver = make(LbfgsConfig(line_search=line_search), [-1.2, 1.0])
    found = search(driver, rosenbrock, 120)
    assert min(found) < 1e-10  # gradient descent is at 1 then
    assert driver.stop()


def test_a_badly_scaled_quadratic_takes_few_evaluations() -> None:
    scale = np.logspace(0, 3, 8)

    def evaluate(candidate: Candidate) -> Evaluation:
        return Evaluation(float(scale @ candidate.vector**2), gradient=2 * scale * candidate.vector)

    found = search(make(LbfgsConfig(), [1.0] * 8), evaluate, 60)
    assert min(found) < 1e-6 * found[0]


def test_bounds_hold_what_the_gradient_presses_against_them() -> None:
    goal = np.array([2.0, 0.5, -3.0])

    def evaluate(candidate: Candidate) -> Evaluation:
        offset = candidate.vector - goal
        joint = offset.sum()
        return Evaluation(float(offset @ offset + 0.1 * joint**2), gradient=2 * offset + 0.2 * joint)

    driver = make(LbfgsConfig(), [0.5, 0.1, 0.5], low=0.0, high=1.0)
    search(driver, evaluate, 60)
    x, y, z = driver.ask()[0].vector
    assert (x, z) == (1.0, 0.0)
    assert 2 * (y - 0.5) + 0.2 * (x - 2 + y - 0.5 + z + 3) == pytest.approx(0.0, abs=1e-6)
    assert driver.stop().keys() == {"converged"}


def test_a_strong_wolfe_step_goes_on_where_backtracking_is_content() -> None:
    ends = {}
    for line_search in ("strong-wolfe", "backtracking"):
        driver = make(LbfgsConfig(line_search=line_search, step=0.001), [8.0])
        search(driver, lambda c: Evaluation(float(c.vector[0] ** 2), gradient=2 * c.vector), 2)
        ends[line_search] = driver.ask()[0].vector[0]
    assert ends["strong-wolfe"] == pytest.approx(8.0 - 0.002)  # the same line, twice as far
    assert ends["backtracking"] < 1.0  # a new line, with curvature


def test_it_stops_where_nothing_is_lower() -> None:
    values = iter(range(10**6))
    driver = make(LbfgsConfig(trials=5), [1.0, 1.0])
    found = search(driver, lambda _: Evaluation(float(next(values)), gradient=np.ones(2)), 60)
    assert len(found) == 6
    assert driver.stop().keys() == {"stalled"}


def test_a_trial_that_failed_is_tried_nearer() -> None:
    driver = make(LbfgsConfig(step=0.4), [1.0])
    search(driver, lambda c: Evaluation(float(c.vector[0] ** 2), gradient=2 * c.vector), 1)
    assert driver.ask()[0].vector.tolist() == [0.6]
    driver.tell([], [])
    assert driver.ask()[0].vector.tolist() == [0.8]


def test_a_restart_forgets_curvature_and_steps_less_far() -> None:
    driver = make(LbfgsConfig(step=0.4), [1.0, 1.0])
    search(driver, lambda c: Evaluation(float(c.vector @ c.vector), gradient=2 * c.vector), 5)
    assert driver.restart(np.array([2.0, 2.0]))
    search(driver, lambda c: Evaluation(float(c.vector @ c.vector), gradient=2 * c.vector), 1)
    np.testing.assert_allclose(driver.ask()[0].vector, [1.96, 1.96])
