from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import optuna
import pytest

from optmerge.config.drivers import OptunaConfig
from optmerge.drivers.optuna_driver import OptunaDriver
from optmerge.drivers.quadratic import quadratic, run, same, variables
from optmerge.drivers.samplers import check_sampler
from optmerge.drivers.state import dumps, loads
from optmerge.errors import ConfigError
from optmerge.records import Candidate, Evaluation


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


def test_known_vectors_are_the_first_trials() -> None:
    box = replace(variables(), known=tuple(np.full(3, value) for value in (0.7, 0.2, 0.4)))
    driver = OptunaDriver(OptunaConfig(known=2), box, seed=np.random.SeedSequence(0), fit_sizes={}, budget=None)
    asked = run(driver, evaluations=4)
    assert [vector.tobytes() for vector in asked[:3]] == [v.tobytes() for v in (box.start, *box.known[:2])]
    assert not np.allclose(asked[3], box.known[2])


def test_sobol_points_fill_the_box_evenly_whatever_they_score_and_whichever_fail() -> None:
    driver = sampler(OptunaConfig(sampler="sobol"))
    points = []
    for index in range(17):
        candidates = driver.ask()
        points.append(candidates[0].vector)
        if index % 3:
            driver.tell(candidates, [Evaluation(float(index))])
        else:
            driver.tell([], [])
    shares = (np.array(points[1:]) + 0.5) / 2.5
    for column in shares.T:  # each sixteenth of each axis once
        assert sorted((16 * column).astype(int)) == list(range(16))
    again = run(sampler(OptunaConfig(sampler="sobol")), evaluations=5)
    assert [vector.tobytes() for vector in again] == [vector.tobytes() for vector in points[:5]]
    assert run(sampler(OptunaConfig(sampler="sobol"), seed=1), evaluations=2)[1].tobytes() != points[1].tobytes()


def test_a_gaussian_process_learns_and_resumes_exactly() -> None:
    config = OptunaConfig(sampler="gp", startup=4)
    whole = sampler(config)
    vectors = run(whole, evaluations=9)
    resumed = sampler(config)
    resumed.load_state_dict(loads(dumps(whole.state_dict())))
    expected = run(whole, evaluations=3)
    assert same(run(resumed, evaluations=3), expected)
    best = min(quadratic(Candidate(vector)).value for vector in [*vectors, *expected])
    assert best < 0.5 * min(quadratic(Candidate(vector)).value for vector in vectors[:5])


def test_what_cannot_be_sampled_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="at most 200 variables, but the search space has 201"):
        check_sampler(OptunaConfig(sampler="gp"), 201)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_sampler(OptunaConfig(), 201)
    with pytest.raises(ConfigError, match=r"needs scipy: pip install 'optmerge\[samplers\]'"):
        check_sampler(OptunaConfig(sampler="sobol"), 3)
    with pytest.raises(ValueError, match="group divides the model of multivariate"):
        OptunaConfig(group=True, multivariate=False)
