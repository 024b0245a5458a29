from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from optmerge.config.gradient_drivers import AdamConfig, LevenbergMarquardtConfig
from optmerge.drivers import make_driver, require_dimension
from optmerge.drivers.base import Driver
from optmerge.drivers.variables import Variables
from optmerge.errors import ConfigError
from optmerge.records import Candidate, Evaluation

SIZE = 64


def make(config: Any, dimension: int, *, budget: int | None = 10**5) -> Driver:
    names = tuple(map(str, range(dimension)))
    box = Variables(names, np.full(dimension, -1.0), np.full(dimension, 2.0), np.full(dimension, 0.3))
    return make_driver(config, box, seed=np.random.SeedSequence(0), fit_sizes={"t": SIZE}, budget=budget)


def toy(seed: int, dimension: int) -> Callable[[Candidate], Evaluation]:
    """Least squares on tanh of badly scaled inputs, with a residual that stays."""
    generator = np.random.default_rng(seed)
    scale = np.logspace(0, -1, dimension) / np.sqrt(dimension)
    inputs = generator.standard_normal((SIZE, 6, dimension)) * scale
    rest = 0.1 * generator.standard_normal((SIZE, 6))
    targets = np.tanh(inputs @ generator.uniform(0.2, 0.8, dimension)) + rest

    def evaluate(candidate: Candidate) -> Evaluation:
        outputs = np.tanh(inputs @ candidate.vector)
        errors = outputs - targets
        jacobian = (1 - outputs**2)[:, :, None] * inputs
        gradient = np.einsum("nm,nmd->d", errors, jacobian) / SIZE
        matrix = np.einsum("nmd,nme->de", jacobian, jacobian) / SIZE
        return Evaluation(float(0.5 * (errors**2).sum(1).mean()), gradient=gradient, curvature=matrix)

    return evaluate


def values(config: Any, dimension: int, evaluate: Callable[[Candidate], Evaluation], trials: int) -> list[float]:
    """The value in each generation, the start's first."""
    driver = make(config, dimension)
    found = []
    for _ in range(trials + 1):
        if driver.stop():
            break
        candidates = driver.ask()
        told = [evaluate(candidate) for candidate in candidates]
        driver.tell(candidates, told)
        found.append(told[0].value)
    return found


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("dimension", "trials", "slack"), [(4, 6, 1.0), (10, 6, 1.0), (60, 10, 1.0)])
def test_some_trials_do_what_adam_does_in_500_steps(dimension: int, trials: int, slack: float, seed: int) -> None:
    evaluate = toy(seed, dimension)
    adam = min(values(AdamConfig(), dimension, evaluate, 500))
    ours = values(LevenbergMarquardtConfig(), dimension, evaluate, trials)
    assert min(ours) <= slack * adam + 1e-9
    assert adam < 0.7 * ours[0]


def test_a_jacobian_is_asked_for_at_one_point_a_generation() -> None:
    driver = make(LevenbergMarquardtConfig(), 3)
    (asked,) = driver.ask()
    assert asked.needs == {"value", "gradient", "jacobian"}
    assert asked.examples is None


def test_a_linear_model_is_solved_in_one_step_within_bounds() -> None:
    generator = np.random.default_rng(0)
    rows, goal = generator.standard_normal((SIZE, 3)), np.array([0.5, 2.9, -0.3])
    matrix = rows.T @ rows / SIZE
    driver = make(LevenbergMarquardtConfig(damping=1e-9), 3)
    (asked,) = driver.ask()
    offset = asked.vector - goal
    driver.tell(
        [asked], [Evaluation(float(0.5 * offset @ matrix @ offset), gradient=matrix @ offset, curvature=matrix)]
    )
    (found,) = driver.ask()
    assert found.vector[1] == 2.0  # at its bound, and the others where they are best given that
    slope = matrix @ (found.vector - goal)
    np.testing.assert_allclose(slope[[0, 2]], 0.0, atol=1e-6)
    assert slope[1] < 0


def test_a_higher_value_or_none_is_followed_by_a_nearer_trial() -> None:
    good = {"gradient": np.array([1.0, 0.5]), "curvature": np.eye(2)}
    for worse in (Evaluation(2.0, **good), Evaluation(1.0, gradient=np.zeros(2))):
        driver = make(LevenbergMarquardtConfig(), 2)
        start = driver.ask()
        driver.tell(start, [Evaluation(1.0, **good)])
        first = driver.ask()
        before = driver.info()["damping"]
        driver.tell(first, [worse])
        (second,) = driver.ask()
        assert driver.info()["damping"] > before
        near, far = (np.linalg.norm(c.vector - start[0].vector) for c in (second, first[0]))
        assert 0 < near < far


def test_it_stops_where_nothing_is_lower() -> None:
    driver = make(LevenbergMarquardtConfig(), 2)
    for trial in range(30):
        if driver.stop():
            break
        asked = driver.ask()
        driver.tell(asked, [Evaluation(1.0 + trial, gradient=np.ones(2), curvature=np.eye(2))])
    assert driver.stop().keys() == {"stalled"}


def test_many_variables_are_refused_with_advice() -> None:
    require_dimension("levenberg-marquardt", 100)
    with pytest.raises(ConfigError, match=r"101 variables.*at most 100.*Use adam"):
        make(LevenbergMarquardtConfig(), 101)


def test_a_budget_below_one_step_is_refused() -> None:
    make(LevenbergMarquardtConfig(), 4, budget=5)
    with pytest.raises(ConfigError, match=r"budget.evaluations is 4.*over 4 variables counts 5.*\(50\)"):
        make(LevenbergMarquardtConfig(), 4, budget=4)
