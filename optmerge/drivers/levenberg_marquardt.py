"""Levenberg-Marquardt for few variables, with the Gauss-Newton matrix of the model's outputs.

In: value, gradient and Gauss-Newton matrix of the whole fit split at a trial point. Out: one trial point a generation.

    driver = LevenbergMarquardtDriver(config, variables, seed=seed, fit_sizes={"topic": 180}, budget=340)

A trial's Jacobian judges the d points beside it, forward only, so that it counts d + 1 evaluations of the budget; with
the gradient's pass it takes about d + 4 forward passes of time. What it buys is a matrix that knows how all variables
act on all outputs together, and steps that need no step size.
"""

from __future__ import annotations

from typing import ClassVar, cast

import numpy as np

from optmerge.config.gradient_drivers import LevenbergMarquardtConfig
from optmerge.drivers.box_quadratic import box_step
from optmerge.drivers.gradient import norm, share_at_bounds, usable
from optmerge.drivers.state import State
from optmerge.drivers.trial import Matrix, Point, TrialDriver
from optmerge.drivers.variables import read_only
from optmerge.records import Evaluation, Need, Vector

REJECTED = 12  # trials in a row without a lower value end the search
RESTART_DAMPING = 10.0  # of the damping at every restart
LEAST_DAMPING = 1e-12  # of the matrix's largest diagonal entry, so that the damped matrix can be solved for


class LevenbergMarquardtDriver(TrialDriver):
    """Damped Gauss-Newton steps (Marquardt 1963), the damping by the gain ratio (Nielsen 1999, equation 3.1).

    A trial is x + s with s the minimum of g's + s'(G + mu I)s/2 within bounds. It is accepted when the value is lower;
    one that is higher, or failed, is tried again nearer.

    >>> import numpy as np
    >>> from optmerge.drivers import Variables
    >>> variables = Variables(("a",), lower=[0], upper=[9], start=[1])
    >>> config = LevenbergMarquardtConfig(damping=1e-9)
    >>> driver = LevenbergMarquardtDriver(
    ...     config, variables, seed=np.random.SeedSequence(0), fit_sizes={"t": 1}, budget=9
    ... )
    >>> asked = driver.ask()
    >>> (x,) = asked[0].vector
    >>> told = Evaluation((x - 4) ** 2, gradient=np.array([2 * (x - 4)]), curvature=np.array([[2.0]]))
    >>> driver.tell(asked, [told])
    >>> driver.ask()[0].vector.round(6).tolist()
    [4.0]
    """

    name: ClassVar[str] = "levenberg-marquardt"
    needs: ClassVar[frozenset[Need]] = frozenset({"value", "gradient", "jacobian"})
    config: LevenbergMarquardtConfig

    def _set_up(self) -> None:
        self._damping = self.config.damping
        super()._set_up()

    def _begin(self, vector: Vector) -> None:
        super()._begin(vector)
        self._mu, self._nu = 0.0, 2.0
        self._predicted = 0.0
        self._rejected = 0

    def info(self) -> dict[str, float]:
        """``damping``, the share of variables ``at_bounds``, ``gain`` and ``gradient_norm`` after the first trial."""
        return {"damping": self._mu, "at_bounds": share_at_bounds(self.variables, self._trial)} | self._info

    def stop(self) -> dict[str, str]:
        """Converged, or no lower value however near."""
        if self._base is None:
            return {}
        if converged := self._converged(self.config.tolerance):
            return converged
        if self._rejected >= REJECTED:
            return {"stalled": f"{REJECTED} trials in a row found no lower value"}
        return {}

    def _tell(self, evaluations: list[Evaluation]) -> None:
        for evaluation in evaluations:
            if usable(evaluation.gradient) and usable(evaluation.curvature):
                self._judge(
                    evaluation.value,
                    np.asarray(evaluation.gradient, dtype=np.float64),
                    np.asarray(evaluation.curvature, dtype=np.float64),
                )
                return
        self._nearer(4.0)

    def _judge(self, value: float, gradient: Vector, matrix: Matrix) -> None:
        gain = 0.0
        if self._base is not None:
            best = self._base.value
            gain = (best - value) / self._predicted if self._predicted > 0 else 0.0
            self._info = {"gain": gain, "gradient_norm": norm(gradient)}
            if not value < best:
                self._rejected += 1
                self._nearer(self._nu)
                self._nu *= 2.0
                return
            self._mu *= max(1.0 / 3.0, 1.0 - (2.0 * gain - 1.0) ** 3)  # Nielsen 1999, equation 3.1
        else:
            self._mu = self._damping * (float(matrix.diagonal().max()) or norm(gradient))
            self._info = {"gain": gain, "gradient_norm": norm(gradient)}
        self._nu, self._rejected = 2.0, 0
        self._base = Point(self._trial, value, read_only(gradient), read_only(matrix))
        self._propose()

    def _nearer(self, factor: float) -> None:
        """More damping; where nothing is known yet, the same trial again."""
        if self._base is not None:
            self._mu *= factor
            self._propose()

    def _propose(self) -> None:
        """The next trial, and how far its value should fall by the quadratic model."""
        assert self._base is not None
        vector, _, gradient, matrix = self._base
        assert matrix is not None, "every trial has one"
        largest = float(matrix.diagonal().max()) or norm(gradient)
        self._mu = max(self._mu, LEAST_DAMPING * largest)
        damped = matrix + (self._mu or 1.0) * np.eye(len(vector))  # 1: nothing moves anything, no gradient either
        step = box_step(damped, gradient, self.variables.lower - vector, self.variables.upper - vector)
        self._trial = self.variables.project(vector + step)
        self._predicted = -float(gradient @ step + 0.5 * step @ matrix @ step)

    def _restart(self, vector: Vector) -> bool:
        self._damping *= RESTART_DAMPING
        self._begin(vector)
        return True

    def _memory(self) -> State:
        return {
            "damping": [self._damping, self._mu, self._nu, self._predicted],
            "rejected": self._rejected,
        }

    def _recall(self, state: State) -> None:
        self._damping, self._mu, self._nu, self._predicted = cast("list[float]", state["damping"])
        self._rejected = cast(int, state["rejected"])
