"""What the drivers that step along a gradient share, and AdamW and SGD against torch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from optmerge.config.gradient_drivers import AdamConfig, AdamWConfig, SgdConfig
from optmerge.drivers import driver_class
from optmerge.drivers.base import Driver
from optmerge.drivers.variables import Variables
from optmerge.errors import ConfigError
from optmerge.records import Evaluation

BOX = Variables(("a", "b", "c"), np.full(3, -9.0), np.full(3, 9.0), np.array([0.1, -0.2, 0.3]))


def make(config: Any, *, box: Variables = BOX, budget: int | None = 10) -> Driver:
    return driver_class(config.name)(config, box, seed=np.random.SeedSequence(0), fit_sizes={}, budget=budget)


def step(driver: Driver, gradient: Any) -> None:
    driver.tell(driver.ask(), [Evaluation(1.0, gradient=np.asarray(gradient, dtype=np.float64))])


def agree(driver: Driver, optimiser: torch.optim.Optimizer, theirs: torch.nn.Parameter) -> None:
    generator = np.random.default_rng(0)
    for _ in range(25):
        gradient = generator.standard_normal(3)
        step(driver, gradient)
        theirs.grad = torch.tensor(gradient)
        optimiser.step()
    np.testing.assert_allclose(driver.ask()[0].vector, theirs.detach().numpy(), rtol=1e-12)


def test_adamw_agrees_with_torch() -> None:
    config = AdamWConfig(lr=0.03, beta1=0.8, beta2=0.95, eps=1e-6, weight_decay=0.3)
    theirs = torch.nn.Parameter(torch.tensor(BOX.start))
    optimiser = torch.optim.AdamW([theirs], lr=0.03, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3)
    agree(make(config), optimiser, theirs)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_agrees_with_torch(nesterov: bool) -> None:
    theirs = torch.nn.Parameter(torch.tensor(BOX.start))
    optimiser = torch.optim.SGD([theirs], lr=0.02, momentum=0.7, nesterov=nesterov)
    agree(make(SgdConfig(lr=0.02, momentum=0.7, nesterov=nesterov)), optimiser, theirs)


@pytest.mark.parametrize(("towards", "ends"), [("zero", np.zeros(3)), ("start", BOX.start)])
def test_weight_decay_pulls_to_where_it_says(towards: Any, ends: np.ndarray) -> None:
    driver = make(AdamWConfig(lr=0.2, weight_decay=1.0, decay_to=towards))
    step(driver, [5.0, -5.0, 5.0])
    for _ in range(300):
        step(driver, [0.0, 0.0, 0.0])
    np.testing.assert_allclose(driver.ask()[0].vector, ends, atol=1e-3)


def test_a_long_gradient_is_clipped_and_a_short_one_is_not() -> None:
    driver = make(SgdConfig(lr=1.0, momentum=0.0, clip=1.0))
    step(driver, [3.0, 0.0, 4.0])
    np.testing.assert_allclose(driver.ask()[0].vector, BOX.start - [0.6, 0.0, 0.8])
    assert driver.info()["gradient_norm"] == 5.0
    step(driver, [0.0, 0.5, 0.0])
    np.testing.assert_allclose(driver.ask()[0].vector, BOX.start - [0.6, 0.5, 0.8])


def test_linear_ends_with_the_budget() -> None:
    driver = make(SgdConfig(lr=0.4, schedule="linear"), budget=4)
    rates = []
    for _ in range(5):
        rates.append(driver.info()["lr"])
        step(driver, [1.0, 1.0, 1.0])
    assert rates == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0])


@pytest.mark.parametrize("config", [AdamConfig, AdamWConfig, SgdConfig])
def test_schedules_that_end_need_a_budget(config: Any) -> None:
    with pytest.raises(ConfigError, match=r"'linear', which ends.*budget\.evaluations is null"):
        make(config(schedule="linear"), budget=None)


def test_a_restart_forgets_the_velocity_and_takes_smaller_steps() -> None:
    driver = make(SgdConfig(lr=0.1))
    step(driver, [9.0, 9.0, 9.0])
    assert driver.restart(np.zeros(3))
    step(driver, [1.0, 1.0, 1.0])
    np.testing.assert_allclose(driver.ask()[0].vector, np.full(3, -0.01))
