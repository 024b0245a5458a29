"""Gradient descent with momentum, Polyak's or Nesterov's.

    driver = SgdDriver(SgdConfig(lr=0.1, momentum=0.9), variables, seed=seed, fit_sizes={"topic": 180}, budget=40)

Its step is in proportion to the gradient, so ``lr`` depends on the objective's scale and on the number of variables;
Adam's does not. Batches, schedule, clipping, bounds and restart are those of `optmerge.drivers.gradient.StepDriver`.
"""

from __future__ import annotations

from typing import ClassVar, cast

import numpy as np

from optmerge.config.gradient_drivers import SgdConfig
from optmerge.drivers.gradient import StepDriver
from optmerge.drivers.state import State
from optmerge.drivers.variables import read_only
from optmerge.records import Vector


class SgdDriver(StepDriver):
    """Descent with momentum: ``u = m u + g``, then ``x = x - lr u``, or ``x - lr (g + m u)`` with ``nesterov``.

    Polyak 1964, equation 9, with the step size outside of the velocity; Nesterov's form is that of Sutskever et al.
    2013 (equations 3 and 4), told at the point that it looks ahead to.

    >>> import numpy as np
    >>> from optmerge.drivers import Variables
    >>> from optmerge.records import Evaluation
    >>> variables = Variables(("a",), lower=[0], upper=[1], start=[0.5])
    >>> config = SgdConfig(lr=0.1, momentum=0.5)
    >>> driver = SgdDriver(config, variables, seed=np.random.SeedSequence(0), fit_sizes={}, budget=9)
    >>> for _ in range(2):
    ...     driver.tell(driver.ask(), [Evaluation(1.0, gradient=np.array([1.0]))])
    >>> driver.ask()[0].vector.round(6).tolist()
    [0.25]
    """

    name: ClassVar[str] = "sgd"
    _velocity: Vector  # u
    config: SgdConfig

    def _moved(self, gradient: Vector) -> Vector:
        momentum = self.config.momentum
        self._velocity = read_only(momentum * self._velocity + gradient)
        along = gradient + momentum * self._velocity if self.config.nesterov else self._velocity
        return self._vector - self.rate * along

    def _forget(self) -> None:
        self._velocity = read_only(np.zeros(len(self.variables)))

    def _memory(self) -> State:
        return {"velocity": self._velocity}

    def _recall(self, state: State) -> None:
        self._velocity = read_only(cast(Vector, state["velocity"]))
