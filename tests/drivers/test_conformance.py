"""Every driver passes every check of ``optmerge.drivers.testing``, in each of its variants."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from optmerge.config.base import Strict
from optmerge.config.drivers import DRIVER_CONFIGS, AdamConfig, AdamWConfig, CmaConfig, OptunaConfig, SgdConfig
from optmerge.config.frank_wolfe import FrankWolfeConfig
from optmerge.config.gradient_drivers import LbfgsConfig, LevenbergMarquardtConfig
from optmerge.config.natural_niches import NaturalNichesConfig
from optmerge.drivers import DRIVERS, driver_class, driver_type
from optmerge.drivers.base import Driver
from optmerge.drivers.quadratic import Maker
from optmerge.drivers.testing import CHECKS
from optmerge.drivers.variables import Variables

VARIANTS: dict[str, Strict] = {
    "adam": AdamConfig(lr=0.1),
    "adam-batches-cosine": AdamConfig(lr=0.1, batch=3, schedule="cosine"),
    "adam-clamp": AdamConfig(lr=0.1, bound="clamp"),
    "adam-clipped-linear": AdamConfig(lr=0.1, clip=0.5, schedule="linear"),
    "adamw": AdamWConfig(lr=0.1),
    "sgd": SgdConfig(),
    "lbfgs": LbfgsConfig(),
    "lbfgs-backtracking": LbfgsConfig(line_search="backtracking", memory=2, step=0.3),
    "levenberg-marquardt": LevenbergMarquardtConfig(),
    "levenberg-marquardt-damped": LevenbergMarquardtConfig(damping=1.0),
    "sgd-nesterov-batches": SgdConfig(nesterov=True, batch=3, schedule="cosine"),
    "cma": CmaConfig(sigma=0.2),
    "cma-diagonal": CmaConfig(sigma=0.2, covariance="diagonal", population=6),
    "cma-knowing": CmaConfig(sigma=0.2, scale="norms", restarts=2),
    "cma-batches": CmaConfig(sigma=0.2, batch=3),
    "cma-folding": CmaConfig(sigma=0.2, bounds="fold"),
    "optuna-tpe": OptunaConfig(startup=5),
    "optuna-tpe-knowing": OptunaConfig(startup=5, group=True),
    "optuna-gp": OptunaConfig(sampler="gp", startup=66),  # a fit takes a second; tests/drivers/test_optuna.py has more
    "optuna-random": OptunaConfig(sampler="random"),
    "optuna-sobol": OptunaConfig(sampler="sobol"),
    "optuna-wilcoxon": OptunaConfig(pruner="wilcoxon", startup=5, rungs=2),
    "optuna-halving": OptunaConfig(pruner="successive-halving", startup=5, reduction=2),
    "optuna-nsga2": OptunaConfig(sampler="nsga2", population=8),
    "optuna-nsga3": OptunaConfig(sampler="nsga3", population=8),
    "optuna-motpe": OptunaConfig(sampler="motpe", startup=5),
    "optuna-nsga3-knowing": OptunaConfig(sampler="nsga3", population=8),
    "natural-niches": NaturalNichesConfig(mutation=0.3, archive=5),
    "frank-wolfe": FrankWolfeConfig(scale=4.0),
    "frank-wolfe-hard": FrankWolfeConfig(variant="hard", scale=4.0),
    "frank-wolfe-open-loop": FrankWolfeConfig(variant="hard", step="open-loop", scale=4.0),
    "frank-wolfe-task-wise": FrankWolfeConfig(oracle="task-wise", scale=4.0, top=2, corrections=1),
    "natural-niches-plain": NaturalNichesConfig(mutation=0.3, archive=8, alpha=0, attraction=False, split=False),
}


def maker(config: Strict, *, knowing: bool = False) -> Maker:
    make = functools.partial(driver_type(config), config)

    def make_knowing(variables: Variables, **others: Any) -> Driver:
        points = (variables.lower + share * (variables.upper - variables.lower) for share in (0.5, 0.3))
        return make(replace(variables, norms=np.arange(1.0, len(variables) + 1), known=tuple(points)), **others)

    return make_knowing if knowing else make


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(check: Callable[[Maker], None], variant: str) -> None:
    check(maker(VARIANTS[variant], knowing=variant.endswith("-knowing")))


def test_every_driver_has_a_variant() -> None:
    assert {config.name for config in VARIANTS.values()} == set(DRIVERS) == set(DRIVER_CONFIGS)


def test_classes_carry_their_names() -> None:
    assert {name: driver_class(name).name for name in DRIVERS} == {name: name for name in DRIVERS}
