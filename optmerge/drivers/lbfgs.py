"""L-BFGS on the whole fit split, with a line search by ask and tell, projected to bounds.

In: value and gradient at one trial per generation. Out: the next trial, on the line or on a new one.

    driver = LbfgsDriver(LbfgsConfig(), variables, seed=seed, fit_sizes={"topic": 180}, budget=60)

Every trial is an evaluation. Nothing is random, so that the seed changes nothing.
"""

from __future__ import annotations

import math
from typing import ClassVar, cast

import numpy as np

from optmerge.config.gradient_drivers import LbfgsConfig
from optmerge.drivers.gradient import norm, share_at_bounds, usable
from optmerge.drivers.state import State
from optmerge.drivers.trial import Point, TrialDriver
from optmerge.drivers.variables import read_only
from optmerge.records import Evaluation, Vector

DECREASE = 1e-4  # c1: of the fall that the slope promises
FLATTER = 0.9  # c2: of the slope, which a strong-Wolfe step brings below this share
_LEAST = 1e-10  # cosine between step and change of gradient, below which a step says nothing about curvature


class LbfgsDriver(TrialDriver):
    """L-BFGS (Nocedal 1980; Nocedal & Wright 2006, algorithm 7.4) on the projected path x(t) = P(x + t d).

    Variables at a bound that the gradient holds there take no part in d (Bertsekas 1982). A trial is accepted when the
    value fell by ``c1`` of what the gradient promises, and, with strong-wolfe, its slope is below ``c2`` of the first
    one's size; where projection bends the path there is no such slope, and the fall alone decides. The interval of t is
    bisected, or doubled while it is open. A trial that failed counts as one that is too far.

    >>> import numpy as np
    >>> from optmerge.drivers import Variables
    >>> variables = Variables(("a",), lower=[0], upper=[9], start=[1])
    >>> driver = LbfgsDriver(LbfgsConfig(step=1), variables, seed=np.random.SeedSequence(0), fit_sizes={}, budget=9)
    >>> for _ in range(3):
    ...     (c,) = driver.ask()
    ...     driver.tell([c], [Evaluation((c.vector[0] - 4) ** 2, gradient=2 * (c.vector - 4))])
    >>> driver.ask()[0].vector.round(6).tolist()
    [4.0]
    """

    name: ClassVar[str] = "lbfgs"
    config: LbfgsConfig

    def _begin(self, vector: Vector) -> None:
        super()._begin(vector)  # the point is where the line starts
        self._along = read_only(np.zeros(len(vector)))  # d
        self._pairs: list[tuple[Vector, Vector]] = []
        self._line = [1.0, 0.0, math.inf]  # t of the trial, and the interval that it is in
        self._tried, self._judged = 0, 0  # trials on this line, and those of them that had a value
        self._stalled = False

    def info(self) -> dict[str, float]:
        """The step ``t`` along the line, the share ``at_bounds``, and ``gradient_norm`` after the first evaluation."""
        return {"t": self._line[0], "at_bounds": share_at_bounds(self.variables, self._trial)} | self._info

    def stop(self) -> dict[str, str]:
        """Converged, or no lower value along the gradient itself."""
        if self._base is None:
            return {}
        if converged := self._converged(self.config.tolerance):
            return converged
        if self._stalled:
            return {"stalled": f"{self.config.trials} trials along the gradient found no lower value"}
        return {}

    def _tell(self, evaluations: list[Evaluation]) -> None:
        told = evaluations[0] if evaluations and usable(evaluations[0].gradient) else None
        if self._base is None:
            if told is not None:
                self._accept(told.value, np.asarray(told.gradient, dtype=np.float64))
            return
        self._tried += 1
        t, low, high = self._line
        if told is None:
            high = t
        else:
            self._judged += 1
            gradient = np.asarray(told.gradient, dtype=np.float64)
            verdict = self._verdict(told.value, gradient)
            if verdict == 0:
                self._accept(told.value, gradient)
                return
            low, high = (t, high) if verdict < 0 else (low, t)
        self._line = [2.0 * low if math.isinf(high) else 0.5 * (low + high), low, high]
        if self._tried < self.config.trials:
            self._place()
        elif self._pairs or self._judged < self._tried:
            self._pairs = []
            self._search()
        else:
            self._stalled = True

    def _verdict(self, value: float, gradient: Vector) -> int:
        """0: accepted; 1: too far; -1: not far enough."""
        assert self._base is not None
        vector, best, before, _ = self._base
        moved = self._trial - vector
        if not value <= best + DECREASE * float(before @ moved):
            return 1
        straight = np.array_equal(self._trial, vector + self._line[0] * self._along)
        if self.config.line_search == "backtracking" or not straight or self._tried >= self.config.trials:
            return 0
        slope, first = float(gradient @ self._along), float(before @ self._along)
        if abs(slope) <= FLATTER * abs(first):  # Nocedal & Wright 2006, 3.7b
            return 0
        return -1 if slope < 0 else 1

    def _accept(self, value: float, gradient: Vector) -> None:
        if self._base is not None:
            step, change = self._trial - self._base.vector, gradient - self._base.gradient
            if step @ change > _LEAST * norm(step) * norm(change):
                self._pairs = [*self._pairs, (read_only(step), read_only(change))][-self.config.memory :]
        self._base = Point(self._trial, value, read_only(gradient))
        self._info = {"gradient_norm": norm(gradient)}
        self._search()

    def _search(self) -> None:
        """A new line from where the last one ended."""
        assert self._base is not None
        vector, _, gradient, _ = self._base
        low, high = self.variables.lower, self.variables.upper
        free = ~(((vector <= low) & (gradient > 0)) | ((vector >= high) & (gradient < 0)))
        along = np.where(free, self._direction(np.where(free, gradient, 0.0)), 0.0)
        if not gradient @ along < 0:
            self._pairs, along = [], np.where(free, -gradient, 0.0)
        largest = float(np.abs(along).max())
        if not self._pairs and largest > 0:
            along = along * (self.config.step * self._scale / largest)
        self._along = read_only(along)
        self._line = [1.0, 0.0, math.inf]
        self._tried = self._judged = 0
        self._place()

    def _place(self) -> None:
        assert self._base is not None
        self._trial = self.variables.project(self._base.vector + self._line[0] * self._along)

    def _direction(self, gradient: Vector) -> Vector:
        """The two-loop recursion (Nocedal & Wright 2006, algorithm 7.4)."""
        q = -gradient
        weights = []
        for step, change in reversed(self._pairs):
            weight = float(step @ q) / float(step @ change)
            q = q - weight * change
            weights.append(weight)
        if self._pairs:
            step, change = self._pairs[-1]
            q = q * (float(step @ change) / float(change @ change))
        for (step, change), weight in zip(self._pairs, reversed(weights), strict=True):
            q = q + (weight - float(change @ q) / float(step @ change)) * step
        return q

    def _memory(self) -> State:
        return {
            "along": self._along,
            "steps": [step for step, _ in self._pairs],
            "changes": [change for _, change in self._pairs],
            "line": read_only(self._line),
            "scale": self._scale,
            "counts": [self._tried, self._judged, int(self._stalled)],
        }

    def _recall(self, state: State) -> None:
        steps, changes = cast("list[Vector]", state["steps"]), cast("list[Vector]", state["changes"])
        self._pairs = [(read_only(step), read_only(change)) for step, change in zip(steps, changes, strict=True)]
        self._along = read_only(cast(Vector, state["along"]))
        self._line = [float(number) for number in cast(Vector, state["line"])]
        self._scale = cast(float, state["scale"])
        self._tried, self._judged, stalled = cast("list[int]", state["counts"])
        self._stalled = bool(stalled)
