from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from optmerge.config.drivers import AdamConfig, CmaConfig, OptunaConfig
from optmerge.drivers import Variables, driver_class, make_driver
from optmerge.errors import ConfigError
from optmerge.records import Evaluation

SEED = np.random.SeedSequence(0)


def test_importing_the_package_imports_no_optimiser() -> None:
    code = "import sys, optmerge.drivers; print(sorted({'cma', 'optuna', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_driver_has_a_near_match() -> None:
    with pytest.raises(
        ConfigError, match=r"no driver 'adma'.*adam, adamw, .*cma, optuna.*Did you mean 'adam' or 'adamw'"
    ):
        driver_class("adma")


@pytest.mark.parametrize("config", [AdamConfig(), CmaConfig(), OptunaConfig()], ids=lambda config: config.name)
def test_nothing_to_search(config: AdamConfig | CmaConfig | OptunaConfig) -> None:
    nothing = Variables((), np.empty(0), np.empty(0), np.empty(0))
    with pytest.raises(ConfigError, match="every coefficient is frozen"):
        make_driver(config, nothing, seed=SEED, fit_sizes={}, budget=1)


def test_variables_are_copied_and_read_only() -> None:
    start = np.array([0.5])
    variables = Variables(("a",), np.array([0.0]), np.array([1.0]), start)
    start[0] = 7.0
    assert variables.start.tolist() == [0.5]
    with pytest.raises(ValueError, match="read-only"):
        variables.start[0] = 0.1


@pytest.mark.parametrize(
    ("names", "lower", "upper", "start", "message"),
    [
        (("a", "a"), [0, 0], [1, 1], [0, 0], "same name"),
        (("a", "b"), [0], [1, 1], [0, 0], r"lower has shape \(1,\), expected \(2,\)"),
        (("a", "b"), [0, 1], [1, 1], [0, 1], r"bounds of b are \[1.0, 1.0\]"),
        (("a", "b"), [0, 0], [1, np.inf], [0, 0], "bounds of b"),
        (("a", "b"), [0, np.nan], [1, 1], [0, 0], "bounds of b"),
        (("a", "b"), [0, 0], [1, 1], [0, 1.5], r"start of b is 1.5, outside its bounds \[0.0, 1.0\]"),
        (("a", "b"), [0, 0], [1, 1], [np.nan, 0], "start of a"),
    ],
)
def test_variables_that_do_not_fit(
    names: tuple[str, ...], lower: list[float], upper: list[float], start: list[float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Variables(names, np.array(lower, float), np.array(upper, float), np.array(start, float))


def test_the_seed_is_not_consumed() -> None:
    seed = np.random.SeedSequence(3)
    box = Variables(("a", "b"), np.zeros(2), np.ones(2), np.full(2, 0.5))
    for config in (AdamConfig(batch=2), CmaConfig(), OptunaConfig()):
        make_driver(config, box, seed=seed, fit_sizes={"t": 9}, budget=9).ask()
    assert seed.n_children_spawned == 0


@pytest.mark.parametrize("config", [CmaConfig(), OptunaConfig()], ids=lambda config: config.name)
def test_who_cannot_restart_is_left_as_it_was(config: CmaConfig | OptunaConfig) -> None:
    variables = Variables(("a", "b"), np.zeros(2), np.ones(2), np.full(2, 0.5))
    driver = make_driver(config, variables, seed=SEED, fit_sizes={}, budget=9)
    candidates = driver.ask()
    assert not driver.restart(np.zeros(2))
    driver.tell(candidates, [Evaluation(float(c.vector.sum())) for c in candidates])
    assert driver.generation == 1


def test_whole_numbers_are_kept_by_projection() -> None:
    box = Variables(
        ("a", "b"), [0, 0], [2, 3], [0.5, 1], integer=np.array([False, True]), known=(np.array([1.3, 1.6]),)
    )
    assert box.known[0].tolist() == [1.3, 2.0]
    assert box.project([0.25, 2.5]).tolist() == [0.25, 2.0]
    assert box.project([9.0, 9.0]).tolist() == [2.0, 3.0]


def test_whole_numbers_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match=r"b takes whole numbers, but its bounds are \[0.0, 2.5\]"):
        Variables(("a", "b"), [0, 0], [1, 2.5], [0, 0], integer=np.array([False, True]))
    with pytest.raises(ConfigError, match="b has 3 choices"):
        Variables(("a", "b"), [0, 0], [1, 1], [0, 0], integer=np.array([False, True]), choices={"b": ("x", "y", "z")})


def test_a_driver_that_follows_gradients_refuses_whole_numbers() -> None:
    box = Variables(("a", "ties.density"), [0, 0], [1, 3], [0, 1], integer=np.array([False, True]))
    with pytest.raises(ConfigError, match=r"ties\.density takes whole numbers only, and the driver adam"):
        make_driver(AdamConfig(), box, seed=SEED, fit_sizes={"t": 3}, budget=9)
