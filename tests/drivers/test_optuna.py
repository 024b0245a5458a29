from __future__ import annotations

import logging

import numpy as np
import optuna
import pytest

from optmerge.config.drivers import OptunaConfig
from optmerge.drivers.optuna_driver import OptunaDriver
from optmerge.drivers.testing import run, variables


def sampler(config: OptunaConfig | None = None, *, seed: int = 0) -> OptunaDriver:
    return OptunaDriver(
        config or OptunaConfig(), variables(), seed=np.random.SeedSequence(seed), fit_sizes={}, budget=None
    )


def test_tpe_beats_random_after_its_startup() -> None:
    def best(config: OptunaConfig) -> float:
        found = []
        for seed in range(3):
            driver = sampler(config, seed=seed)
            run(driver, evaluations=50)
            found.append(driver.info()["best"])
        return float(np.mean(found))

    assert best(OptunaConfig(sampler="tpe")) < best(OptunaConfig(sampler="random"))


def test_startup_is_random_and_counts_without_the_start() -> None:
    tpe = run(sampler(OptunaConfig(startup=6, multivariate=False)), evaluations=9)
    other = run(sampler(OptunaConfig(startup=30, multivariate=False)), evaluations=9)
    equal = [a.tobytes() == b.tobytes() for a, b in zip(tpe, other, strict=True)]
    assert equal == [True] * 7 + [False] * 2


def test_children_of_one_seed_draw_different_trials() -> None:
    first, second = (
        OptunaDriver(OptunaConfig(), variables(), seed=seed, fit_sizes={}, budget=None)
        for seed in np.random.SeedSequence(0).spawn(2)
    )
    assert run(first, evaluations=2)[1].tobytes() != run(second, evaluations=2)[1].tobytes()


@pytest.mark.parametrize("level", [optuna.logging.INFO, optuna.logging.ERROR])
def test_optuna_is_silent_and_the_users_verbosity_stays(level: int, capfd: pytest.CaptureFixture[str]) -> None:
    before, propagates = optuna.logging.get_verbosity(), logging.getLogger("optuna").propagate
    optuna.logging.set_verbosity(level)
    try:
        run(sampler(OptunaConfig(startup=2)), evaluations=5)
        assert optuna.logging.get_verbosity() == level
    finally:
        optuna.logging.set_verbosity(before)
    assert logging.getLogger("optuna").propagate == propagates
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
