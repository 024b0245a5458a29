from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from optmerge.config.gradient_drivers import AdamConfig, LevenbergMarquardtConfig
from optmerge.drivers import make_driver, require_dimension
from optmerge.drivers.base import Driver, Variables
from optmerge.errors import ConfigError
from optmerge.records import Candidate, Evaluation

SIZE = 64


def make(config: Any, dimension: int, *, sizes: dict[str, int] | None = None) -> Driver:
    names = tuple(map(str, range(dimension)))
    box = Variables(names, np.full(dimension, -1.0), np.full(dimension, 2.0), np.full(dimension, 0.3))
    return make_driver(config, box, seed=np.random.SeedSequence(0), fit_sizes=sizes or {"t": SIZE}, budget=10**5)


def toy(seed: int, dimension: int) -> Callable[[Candidate], Evaluation]:
    """Least squares on tanh of badly scaled inputs, with a residual that stays."""
    generator = np.random.default_rng(seed)
    scale = np.logspace(0, -1, dimension) / np.sqrt(dimension)
    inputs = generator.standard_normal((SIZE, 6, dimension)) * scale
    rest = 0.1 * generator.standard_normal((SIZE, 6))
    targets = np.tanh(inputs @ generator.uniform(0.2, 0.8, dimension)) + rest

    def evaluate(candidate: Candidate) -> Evaluation:
        rows = list(range(SIZE) if candidate.examples is None else candidate.examples["t"])
        outputs = np.tanh(inputs[rows] @ candidate.vector)
        errors = outputs - targets[rows]
        gradient = np.einsum("nm,nmd->d", errors * (1 - outputs**2), inputs[rows]) / len(rows)
        return Evaluation(float(0.5 * (errors**2).sum(1).mean()), gradient=gradient)

    return evaluate


def values(config: Any, dimension: int, evaluate: Callable[[Candidate], Evaluation], trials: int) -> list[float]:
    """The whole split's value in each generation, the start's first."""
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
@pytest.mark.parametrize(("dimension", "slack"), [(4, 1.001), (10, 1.001), (60, 1.05)])
def test_ten_trials_do_what_adam_does_in_500_steps(dimension: int, slack: float, seed: int) -> None:
    evaluate = toy(seed, dimension)
    adam = values(AdamConfig(), dimension, evaluate, 500)[-1]
    ours = values(LevenbergMarquardtConfig(micro_batches=SIZE), dimension, evaluate, 10)
    assert min(ours) <= slack * adam < 0.7 * ours[0]


def test_one_residual_a_part_is_gauss_newton() -> None:
    generator = np.random.default_rng(0)
    rows, goal = generator.standard_normal((SIZE, 3)), np.array([0.5, 0.9, -0.3])
    targets = rows @ goal

    def linear(candidate: Candidate) -> Evaluation:
        chosen = list(range(SIZE) if candidate.examples is None else candidate.examples["t"])
        errors = rows[chosen] @ candidate.vector - targets[chosen]
        return Evaluation(float(0.5 * (errors**2).mean()), gradient=rows[chosen].T @ errors / len(chosen))

    driver = make(LevenbergMarquardtConfig(micro_batches=SIZE, damping=1e-9), 3)
    candidates = driver.ask()
    driver.tell(candidates, [linear(candidate) for candidate in candidates])
    np.testing.assert_allclose(driver.ask()[0].vector, goal, atol=1e-6)


def test_parts_divide_the_split_and_hold_every_task() -> None:
    driver = make(LevenbergMarquardtConfig(micro_batches=5), 2, sizes={"a": 13, "b": 4})
    whole, *parts = (candidate.examples for candidate in driver.ask())
    assert whole is None
    assert len(parts) == 4
    for task, size in (("a", 13), ("b", 4)):
        dealt = [part[task] for part in parts if part is not None]
        assert sorted(sum(dealt, ())) == list(range(size))
        assert min(map(len, dealt)) > 0


def test_a_higher_value_is_rejected_with_more_damping() -> None:
    driver = make(LevenbergMarquardtConfig(micro_batches=2), 2)
    start = driver.ask()
    driver.tell(start, [Evaluation(1.0, gradient=np.array([1.0, 0.5])) for _ in start])
    first = driver.ask()
    before = driver.info()["damping"]
    driver.tell(first, [Evaluation(2.0, gradient=np.array([1.0, 0.5])) for _ in first])
    second = driver.ask()[0].vector
    assert driver.info()["damping"] > before
    assert np.linalg.norm(second - start[0].vector) < np.linalg.norm(first[0].vector - start[0].vector)


def test_it_stops_where_nothing_is_lower() -> None:
    driver = make(LevenbergMarquardtConfig(micro_batches=2), 2)
    for trial in range(30):
        if driver.stop():
            break
        asked = driver.ask()
        driver.tell(asked, [Evaluation(1.0 + trial, gradient=np.array([1.0, 1.0])) for _ in asked])
    assert driver.stop().keys() == {"stalled"}


def test_many_variables_are_refused_with_advice() -> None:
    require_dimension("levenberg-marquardt", 100)
    with pytest.raises(ConfigError, match=r"101 variables.*at most 100.*Use adam"):
        make(LevenbergMarquardtConfig(), 101)
