"""How far CMA-ES samples along each variable at first, by what is known of how far the variable moves the model.

    deviations_of(CmaConfig(scale="norms"), variables)        # float64[d], before the step size

In: `Variables.norms` or `Variables.curvature`. Out: standard deviations with which a step moves the model as far along
every variable.
"""

from __future__ import annotations

import math

import numpy as np

from optmerge.config.drivers import CmaConfig
from optmerge.drivers.variables import Variables
from optmerge.errors import ConfigError
from optmerge.records import Vector

SCALE_LIMIT = 10.0  # a standard deviation is at most this many times, and at least one such part of, the usual one


def deviations_of(config: CmaConfig, variables: Variables) -> Vector:
    """What ``driver.scale`` makes of the variables, before the step size.

    Raises:
        ConfigError: It needs what nobody measured.
    """
    if config.scale == "none":
        return np.ones(len(variables))
    measured = variables.norms if config.scale == "norms" else variables.curvature
    if measured is None:
        raise ConfigError(
            "driver.scale is 'norms', but the variables come without norms. Use 'none'."
            if config.scale == "norms"
            else "driver.scale is 'fisher', which needs the mean squared gradient by every variable, and no gradient "
            "was measured before. Let a stage with a gradient driver come first (schedule: [adam, {driver: {name: cma, "
            "scale: fisher}}]), or use 'norms', which needs none."
        )
    return relative_deviations(measured if config.scale == "norms" else np.sqrt(measured))


def relative_deviations(norms: Vector) -> Vector:
    """Standard deviations inversely proportional to ``norms``, with a geometric mean of 1 before the limit.

    A step of one standard deviation then moves the model as far along every variable. They are kept within a factor
    of `SCALE_LIMIT`: a variable that scales hardly anything is still one that has bounds to search.

    >>> relative_deviations(np.array([1.0, 4.0, 0.0])).tolist()
    [2.0, 0.5, 10.0]
    """
    some = norms[norms > 0]
    if not len(some):
        return np.ones(len(norms))
    usual = math.exp(math.fsum(np.log(some)) / len(some))
    with np.errstate(divide="ignore"):
        return np.clip(usual / norms, 1 / SCALE_LIMIT, SCALE_LIMIT)
