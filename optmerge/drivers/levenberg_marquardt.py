"""Levenberg-Marquardt for few variables, on the gradients of parts of the fit split.

In: the value and gradient of the whole fit split at a trial point, and those of each of its parts. Out: one trial point
per generation, asked once as a whole and once per part, so that a step with n parts counts n + 1 evaluations and costs
two passes over the split.

    driver = LevenbergMarquardtDriver(config, variables, seed=seed, fit_sizes={"topic": 180}, budget=340)

The matrix. The value of part b is read as half a squared residual, f_b = r_b^2 / 2, so that its gradient is
g_b = r_b grad r_b, and the Gauss-Newton matrix of the mean over parts is

    H = (1/n) sum_b (grad r_b)(grad r_b)' = (1/n) sum_b g_b g_b' / (2 f_b),

the empirical Fisher matrix of the parts' gradients with each outer product divided by twice its part's value. Where f_b
is itself a sum of squares over examples this is a lower bound of its Gauss-Newton matrix (Cauchy-Schwarz), and equal to
it for one residual a part. A part whose value is not positive adds nothing. Each trial's (s, y), the change of the
vector and of the whole split's gradient, then corrects the matrix along s by a BFGS update, the newest last; this is
where curvature that no part's gradient shows is from (a structured quasi-Newton matrix; Dennis, Gay & Welsch 1981).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, cast

import numpy as np
import numpy.typing as npt

from optmerge.config.gradient_drivers import LevenbergMarquardtConfig
from optmerge.drivers.base import Driver, Variables, read_only
from optmerge.drivers.gradient import NEEDS, norm, share_at_bounds, usable
from optmerge.drivers.state import State
from optmerge.records import Candidate, Evaluation, Vector

Matrix = npt.NDArray[np.float64]

PAIRS = 10  # steps that correct the matrix
REJECTED = 12  # trials in a row without a lower value end the search
RESTART_DAMPING = 10.0  # of the damping at every restart
_LEAST = 1e-12  # cosine between s and y, below which a step says nothing about curvature


class LevenbergMarquardtDriver(Driver):
    """Damped Gauss-Newton steps (Marquardt 1963), the damping by the gain ratio (Nielsen 1999, equation 3.1).

    A trial is x + h, projected to bounds, with (H + mu I) h = -g over the variables that are not held at a bound by the
    gradient. It is accepted when the whole fit split's value is lower. A trial that failed is tried again nearer.

    >>> import numpy as np
    >>> variables = Variables(("a",), lower=[0], upper=[9], start=[1])
    >>> config = LevenbergMarquardtConfig(damping=1e-9)
    >>> driver = LevenbergMarquardtDriver(
    ...     config, variables, seed=np.random.SeedSequence(0), fit_sizes={"t": 1}, budget=9
    ... )
    >>> asked = driver.ask()
    >>> driver.tell(asked, [Evaluation((c.vector[0] - 4) ** 2, gradient=2 * (c.vector - 4)) for c in asked])
    >>> driver.ask()[0].vector.round(6).tolist()
    [4.0]
    """

    name: ClassVar[str] = "levenberg-marquardt"
    needs_gradient: ClassVar[bool] = True

    def __init__(
        self,
        config: LevenbergMarquardtConfig,
        variables: Variables,
        *,
        seed: np.random.SeedSequence,
        fit_sizes: Mapping[str, int],
        budget: int | None,
    ) -> None:
        super().__init__(config, variables, seed=seed, fit_sizes=fit_sizes, budget=budget)
        self.config = config
        self._parts = _deal(self.fit_sizes, config.micro_batches, np.random.Generator(np.random.PCG64(seed)))
        self._damping = config.damping
        self._begin(variables.start)

    def _begin(self, vector: Vector) -> None:
        d = len(self.variables)
        self._trial = vector
        self._base: tuple[Vector, float, Vector, Matrix] | None = None  # x, f, g and H there, uncorrected
        self._pairs: list[tuple[Vector, Vector]] = []
        self._mu, self._nu = 0.0, 2.0
        self._predicted = 0.0
        self._rejected = 0
        self._info: dict[str, float] = {}
        self._zero = np.zeros((d, d))

    def info(self) -> dict[str, float]:
        """``damping``, the share of variables ``at_bounds``, ``gain`` and ``gradient_norm`` after the first trial."""
        return {"damping": self._mu, "at_bounds": share_at_bounds(self.variables, self._trial)} | self._info

    def stop(self) -> dict[str, str]:
        """Converged, or no lower value however near."""
        if self._base is None:
            return {}
        vector, _, gradient, _ = self._base
        reach = float(np.abs(self.variables.project(vector - gradient) - vector).max())
        if reach <= self.config.tolerance:
            return {"converged": f"within {self.config.tolerance:g}, no coefficient is moved by the gradient any more"}
        if self._rejected >= REJECTED:
            return {"stalled": f"{REJECTED} trials in a row found no lower value"}
        return {}

    def _ask(self) -> list[Candidate]:
        return [self.candidate(self._trial, needs=NEEDS, examples=part) for part in (None, *self._parts)]

    def _tell(self, evaluations: list[Evaluation]) -> None:
        parts = [(e.value, e.gradient) for e in evaluations[1:] if e.gradient is not None and usable(e.gradient)]
        parts = [(value, gradient) for value, gradient in parts if gradient.any()]  # a failed one is told zeros
        whole = evaluations[0] if evaluations else None
        failed = whole is None or not usable(whole.gradient) or (bool(parts) and not np.any(whole.gradient))
        if whole is None or failed:
            self._nearer(4.0)
        else:
            self._judge(whole.value, np.asarray(whole.gradient, dtype=np.float64), parts)

    def _judge(self, value: float, gradient: Vector, parts: list[tuple[float, Vector]]) -> None:
        matrix = self._matrix(value, gradient, parts)
        gain = 0.0
        if self._base is not None:
            vector, best, before, _ = self._base
            step, change = self._trial - vector, gradient - before
            if step @ change > _LEAST * norm(step) * norm(change):
                self._pairs = [*self._pairs, (read_only(step), read_only(change))][-PAIRS:]
            gain = (best - value) / self._predicted if self._predicted > 0 else 0.0
            self._info = {"gain": gain, "gradient_norm": norm(gradient)}
            if not value < best:
                self._rejected += 1
                self._nearer(self._nu)
                self._nu *= 2.0
                return
            self._mu *= max(1.0 / 3.0, 1.0 - (2.0 * gain - 1.0) ** 3)  # Nielsen 1999, equation 3.1
        else:
            self._mu = self._damping * float(matrix.diagonal().max())
            self._info = {"gain": gain, "gradient_norm": norm(gradient)}
        self._nu, self._rejected = 2.0, 0
        self._base = (self._trial, value, read_only(gradient), read_only(matrix))
        self._propose()

    def _nearer(self, factor: float) -> None:
        """More damping; where nothing is known yet, the same trial again."""
        if self._base is not None:
            self._mu *= factor
            self._propose()

    def _matrix(self, value: float, gradient: Vector, parts: list[tuple[float, Vector]]) -> Matrix:
        """The Gauss-Newton matrix of the parts; of the whole split where no part can be used."""
        matrix = self._zero.copy()
        for level, slope in parts or [(value, gradient)]:
            if level > 0:
                matrix += np.outer(slope, slope) / (2.0 * level)
        matrix /= max(len(parts), 1)
        return matrix if matrix.any() else norm(gradient) * np.eye(len(gradient))

    def _propose(self) -> None:
        """The next trial, and how far its value should fall by the quadratic model."""
        assert self._base is not None
        vector, _, gradient, matrix = self._base
        for step, change in self._pairs:
            matrix = _corrected(matrix, step, change)
        low, high = self.variables.lower, self.variables.upper
        free = ~(((vector <= low) & (gradient > 0)) | ((vector >= high) & (gradient < 0)))
        self._predicted = 0.0
        if not gradient[free].any():
            return
        self._mu = max(self._mu, 1e-15 * float(matrix.diagonal().max()))
        for _ in range(60):
            step = np.zeros(len(vector))
            damped = matrix[np.ix_(free, free)] + self._mu * np.eye(int(free.sum()))
            step[free] = -np.linalg.solve(damped, gradient[free])
            self._trial = self.variables.project(vector + step)
            moved = self._trial - vector
            self._predicted = -float(gradient @ moved + 0.5 * moved @ matrix @ moved)
            if self._predicted > 0:
                return
            self._mu *= 2.0  # projection bent the step upwards

    def _restart(self, vector: Vector) -> bool:
        self._damping *= RESTART_DAMPING
        self._begin(vector)
        return True

    def _state(self) -> State:
        state: State = {
            "trial": self._trial,
            "steps": [step for step, _ in self._pairs],
            "changes": [change for _, change in self._pairs],
            "damping": [self._damping, self._mu, self._nu, self._predicted],
            "rejected": self._rejected,
            "info": dict(self._info),
        }
        if self._base is not None:
            vector, value, gradient, matrix = self._base
            state["base"] = {"vector": vector, "value": value, "gradient": gradient, "matrix": matrix}
        return state

    def _load(self, state: State) -> None:
        self._begin(read_only(cast(Vector, state["trial"])))
        steps, changes = cast("list[Vector]", state["steps"]), cast("list[Vector]", state["changes"])
        self._pairs = [(read_only(step), read_only(change)) for step, change in zip(steps, changes, strict=True)]
        self._damping, self._mu, self._nu, self._predicted = cast("list[float]", state["damping"])
        self._rejected = cast(int, state["rejected"])
        self._info = dict(cast("dict[str, float]", state["info"]))
        base = cast("dict[str, Vector]", state.get("base"))
        if base is not None:
            value = cast(float, base["value"])
            self._base = (read_only(base["vector"]), value, read_only(base["gradient"]), read_only(base["matrix"]))


def _corrected(matrix: Matrix, step: Vector, change: Vector) -> Matrix:
    """The BFGS update: curvature ``change`` along ``step``, unchanged elsewhere (Nocedal & Wright 2006, 6.19)."""
    image = matrix @ step
    along = float(step @ image)
    corrected = matrix + np.outer(change, change) / float(step @ change)
    if along > 1e-14 * float(np.abs(matrix).max()) * float(step @ step):
        corrected -= np.outer(image, image) / along
    return corrected


def _deal(sizes: Mapping[str, int], most: int, generator: np.random.Generator) -> list[dict[str, tuple[int, ...]]]:
    """The fit split in parts with examples of every task, the same in every step; sizes in a task differ by one."""
    count = min([most, *sizes.values()]) if sizes else 0
    parts: list[dict[str, tuple[int, ...]]] = [{} for _ in range(count)]
    for task, size in sizes.items():
        for part, positions in zip(parts, np.array_split(generator.permutation(size), max(count, 1)), strict=False):
            part[task] = tuple(sorted(positions.tolist()))
    return parts
