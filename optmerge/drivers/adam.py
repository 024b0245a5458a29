"""Adam and AdamW on the exact gradient of the objective with respect to the coefficients.

    driver = AdamDriver(AdamConfig(lr=0.05), variables, seed=seed, fit_sizes={"topic": 180}, budget=40)

Batches, schedule, clipping, bounds and restart are those of `optmerge.drivers.gradient.StepDriver`. Moments are
float64.
"""

from __future__ import annotations

from typing import ClassVar, cast

import numpy as np

from optmerge.config.gradient_drivers import AdamConfig, AdamWConfig
from optmerge.drivers.gradient import StepDriver
from optmerge.drivers.state import State
from optmerge.drivers.variables import read_only
from optmerge.records import Vector


class AdamDriver(StepDriver):
    """Adam (Kingma & Ba 2015, algorithm 1).

    >>> import numpy as np
    >>> from optmerge.drivers import Variables
    >>> from optmerge.records import Evaluation
    >>> variables = Variables(("a", "b"), lower=[0, 0], upper=[1, 1], start=[0.3, 0.3])
    >>> driver = AdamDriver(AdamConfig(lr=0.1), variables, seed=np.random.SeedSequence(0), fit_sizes={}, budget=9)
    >>> (candidate,) = driver.ask()
    >>> driver.tell([candidate], [Evaluation(1.0, gradient=np.array([2.0, -5.0]))])
    >>> driver.ask()[0].vector.round(6).tolist()
    [0.2, 0.4]
    """

    name: ClassVar[str] = "adam"
    _first: Vector  # m, mean of the gradient
    _second: Vector  # v, mean of its square
    _decay: tuple[float, float]  # beta1^t, beta2^t, by multiplication: the same on every machine
    config: AdamConfig | AdamWConfig

    def _moved(self, gradient: Vector) -> Vector:
        config = self.config
        self._decay = (self._decay[0] * config.beta1, self._decay[1] * config.beta2)
        self._first = read_only(config.beta1 * self._first + (1 - config.beta1) * gradient)
        self._second = read_only(config.beta2 * self._second + (1 - config.beta2) * gradient**2)
        first = self._first / (1 - self._decay[0])
        second = self._second / (1 - self._decay[1])
        moved: Vector = self._vector - self.rate * first / (np.sqrt(second) + config.eps)
        return moved

    def _forget(self) -> None:
        self._first = self._second = read_only(np.zeros(len(self.variables)))
        self._decay = (1.0, 1.0)

    def _memory(self) -> State:
        return {"first": self._first, "second": self._second, "decay": list(self._decay)}

    def _recall(self, state: State) -> None:
        self._first = read_only(cast(Vector, state["first"]))
        self._second = read_only(cast(Vector, state["second"]))
        decay = cast("list[float]", state["decay"])
        self._decay = (decay[0], decay[1])


class AdamWDriver(AdamDriver):
    """AdamW (Loshchilov & Hutter 2019, algorithm 2): Adam, and a pull that no moment sees.

    A step is Adam's minus ``lr * weight_decay * (vector - anchor)``, where the anchor is zero, which is the base model,
    or the start of the search.

    >>> import numpy as np
    >>> from optmerge.drivers import Variables
    >>> from optmerge.records import Evaluation
    >>> variables = Variables(("a",), lower=[0], upper=[1], start=[0.5])
    >>> config = AdamWConfig(lr=0.1, weight_decay=0.2)
    >>> driver = AdamWDriver(config, variables, seed=np.random.SeedSequence(0), fit_sizes={}, budget=9)
    >>> (candidate,) = driver.ask()
    >>> driver.tell([candidate], [Evaluation(1.0, gradient=np.array([2.0]))])
    >>> driver.ask()[0].vector.round(6).tolist()
    [0.39]
    """

    name: ClassVar[str] = "adamw"
    config: AdamWConfig

    def _set_up(self) -> None:
        super()._set_up()
        self._pull = self.config.weight_decay
        at_start = self.config.decay_to == "start"
        self._anchor = self.variables.start if at_start else read_only(np.zeros(len(self.variables)))

    def _moved(self, gradient: Vector) -> Vector:
        pull = self.rate * self._pull * (self._vector - self._anchor)
        return super()._moved(gradient) - pull
