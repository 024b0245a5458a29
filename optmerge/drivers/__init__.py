"""Drivers: what moves a vector through a search space, by ask and tell, knowing nothing of models.

Classes are imported when they are asked for, so that this package costs neither pycma nor Optuna.

    driver = make_driver(config.driver, variables, seed=seed, fit_sizes=sizes, budget=300)
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import numpy as np

from optmerge.config.base import Strict
from optmerge.config.drivers import CURVATURE_DRIVERS, OptunaConfig
from optmerge.drivers.base import Driver
from optmerge.drivers.variables import Variables
from optmerge.errors import ConfigError, did_you_mean

# name in the search file -> where its class is; the names are those of optmerge.config.drivers.DRIVER_CONFIGS
DRIVERS: dict[str, str] = {
    "adam": "optmerge.drivers.adam:AdamDriver",
    "adamw": "optmerge.drivers.adam:AdamWDriver",
    "sgd": "optmerge.drivers.sgd:SgdDriver",
    "lbfgs": "optmerge.drivers.lbfgs:LbfgsDriver",
    "levenberg-marquardt": "optmerge.drivers.levenberg_marquardt:LevenbergMarquardtDriver",
    "cma": "optmerge.drivers.cma_driver:CmaDriver",
    "optuna": "optmerge.drivers.optuna_driver:OptunaDriver",
    "natural-niches": "optmerge.drivers.natural_niches:NaturalNichesDriver",
    "frank-wolfe": "optmerge.drivers.frank_wolfe:FrankWolfeDriver",
}

# Without a gradient, a vector of more variables than this learns nothing within any budget that a model allows.
MOST_VARIABLES = {"cma": 20_000, "optuna": 5_000, "natural-niches": 20_000}
MOST_CURVATURE = 100  # variables of a driver that solves for a matrix of all of them

__all__ = [
    "DRIVERS",
    "Driver",
    "Variables",
    "check_driver",
    "driver_class",
    "driver_type",
    "make_driver",
    "require_dimension",
    "require_step",
]


def driver_class(name: str) -> type[Driver]:
    """The class of the driver called ``name``, imported now.

    Raises:
        ConfigError: There is no such driver.
    """
    if name not in DRIVERS:
        known = ", ".join(DRIVERS)
        raise ConfigError(f"There is no driver {name!r}; the drivers are {known}." + did_you_mean(name, DRIVERS))
    module, _, attribute = DRIVERS[name].partition(":")
    found: type[Driver] = getattr(importlib.import_module(module), attribute)
    return found


def driver_type(config: Strict) -> type[Driver]:
    """The class that ``config`` needs: that of its name, or for Optuna the one for a shared study or with a pruner.

    Raises:
        ConfigError: There is no driver of this name.
    """
    name: str = getattr(config, "name", type(config).__name__)
    if getattr(config, "storage", None) is not None:
        from optmerge.drivers.shared_study import SharedStudyDriver

        return SharedStudyDriver
    if getattr(config, "pruner", "none") != "none":
        from optmerge.drivers.pruned_optuna import PrunedOptunaDriver

        return PrunedOptunaDriver
    return driver_class(name)


def require_dimension(name: str, dimension: int) -> None:
    """Refuse a driver that cannot search so many variables.

    Raises:
        ConfigError: There are more than `MOST_VARIABLES`, or than `MOST_CURVATURE` for one that solves for a matrix.
    """
    if name in CURVATURE_DRIVERS and dimension > MOST_CURVATURE:
        raise ConfigError(
            f"The search space has {dimension:,} variables, and the driver {name} takes at most "
            f"{MOST_CURVATURE}: every step takes a forward pass over the fit split for each of them. Use adam, or a "
            "coarser space such as task-wise or layer-wise."
        )
    most = MOST_VARIABLES.get(name, dimension)
    if dimension > most:
        raise ConfigError(
            f"The search space has {dimension:,} variables, and the driver {name} takes at most {most:,}. It learns "
            "from values alone, and neither a diagonal covariance nor a larger population would get anywhere. Use "
            "adam, which sees the gradient by all of them at once, or a coarser space such as tensor- or layer-wise."
        )


def require_step(name: str, dimension: int, *, budget: int | None) -> None:
    """Refuse a driver whose budget does not pay for one step.

    Raises:
        ConfigError: A Jacobian counts more evaluations than there are.
    """
    if name in CURVATURE_DRIVERS and budget is not None and budget <= dimension:
        raise ConfigError(
            f"budget.evaluations is {budget} (in a schedule, what is left to the stage), and one step of {name} over "
            f"{dimension} variables counts {dimension + 1}: its Jacobian judges a neighbour along each. Allow some ten "
            f"steps ({10 * (dimension + 1)}), or use adam."
        )


def check_driver(config: Strict, dimension: int, *, budget: int | None) -> None:
    """Refuse settings that cannot search so many variables here, before there is anything to search.

    Raises:
        ConfigError: There are too many variables or too few evaluations, or a package is missing.
    """
    name: str = getattr(config, "name", type(config).__name__)
    require_dimension(name, dimension)
    require_step(name, dimension, budget=budget)
    if isinstance(config, OptunaConfig):
        from optmerge.drivers.pruning import make_pruner
        from optmerge.drivers.samplers import check_sampler

        check_sampler(config, dimension)
        if config.pruner != "none":
            make_pruner(config)


def make_driver(
    config: Strict,
    variables: Variables,
    *,
    seed: np.random.SeedSequence,
    fit_sizes: Mapping[str, int],
    budget: int | None,
) -> Driver:
    """The driver that ``config`` names, at its start; see `optmerge.drivers.base.Driver` for the arguments.

    Raises:
        ConfigError: As of `check_driver`, or the settings do not fit the variables.
    """
    name: str = getattr(config, "name", type(config).__name__)
    require_dimension(name, len(variables))
    require_step(name, len(variables), budget=budget)
    return driver_type(config)(config, variables, seed=seed, fit_sizes=fit_sizes, budget=budget)
