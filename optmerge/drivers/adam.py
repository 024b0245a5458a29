"""Adam on the exact gradient of the objective with respect to the coefficients.

In: one gradient per generation, of all fit examples or of a mini-batch. Out: one vector per generation.

    driver = AdamDriver(AdamConfig(lr=0.05), variables, seed=seed, fit_sizes={"topic": 180}, budget=40)

Vector and moments are float64. Bounds are kept by projection after the step. ``bound: clamp`` is the clamp inside the
objective of AdaMerging (Yang et al. 2024): it has no gradient beyond the bound, so a variable that went there comes
back by what is left of its momentum or not at all.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt

from optmerge.config.drivers import AdamConfig
from optmerge.drivers.base import Driver, Variables, read_only
from optmerge.drivers.state import State
from optmerge.errors import ConfigError
from optmerge.records import Candidate, Evaluation, Need, Vector

log = logging.getLogger(__name__)

RESTART_SCALE = 0.1  # of the step size at every restart
_NEEDS: frozenset[Need] = frozenset({"value", "gradient"})


class AdamDriver(Driver):
    """Adam (Kingma & Ba 2015, algorithm 1), projected to bounds or clamped to them.

    With ``batch``, each task's fit examples are shuffled once per epoch and dealt into batches whose sizes differ by
    at most one, none above ``batch``; a task with no more examples than that is always seen whole. An evaluation
    whose gradient is missing or not finite is passed over: the vector stays, the next batch is drawn.

    >>> import numpy as np
    >>> variables = Variables(("a", "b"), lower=[0, 0], upper=[1, 1], start=[0.3, 0.3])
    >>> driver = AdamDriver(AdamConfig(lr=0.1), variables, seed=np.random.SeedSequence(0), fit_sizes={}, budget=9)
    >>> (candidate,) = driver.ask()
    >>> driver.tell([candidate], [Evaluation(1.0, gradient=np.array([2.0, -5.0]))])
    >>> driver.ask()[0].vector.round(6).tolist()
    [0.2, 0.4]
    """

    name: ClassVar[str] = "adam"
    needs_gradient: ClassVar[bool] = True

    def __init__(
        self,
        config: AdamConfig,
        variables: Variables,
        *,
        seed: np.random.SeedSequence,
        fit_sizes: Mapping[str, int],
        budget: int | None,
    ) -> None:
        super().__init__(config, variables, seed=seed, fit_sizes=fit_sizes, budget=budget)
        if config.schedule == "cosine" and budget is None:
            raise ConfigError(
                "driver.schedule is 'cosine', which ends where the budget ends, but budget.evaluations is null. "
                "Set budget.evaluations, or driver.schedule to 'constant'."
            )
        self.config = config
        self._vector = variables.start  # with bound: clamp, not within bounds
        self._first = read_only(np.zeros(len(variables)))  # m, mean of the gradient
        self._second = read_only(np.zeros(len(variables)))  # v, mean of its square
        self._scale = 1.0  # of the step size, since the last restart
        self._decay = (1.0, 1.0)  # beta1^t, beta2^t, by multiplication: the same on every machine
        self._info: dict[str, float] = {}
        self._batches = _Batches(self.fit_sizes, config.batch, np.random.Generator(np.random.PCG64(seed)))

    @property
    def rate(self) -> float:
        """The step size of this generation, in units of a coefficient."""
        if self.config.schedule == "constant":
            return self.config.lr * self._scale
        assert self.budget is not None, "checked at the start"
        done = min(self.generation / self.budget, 1.0)
        return (
            self.config.lr * self._scale * 0.5 * (1.0 + math.cos(math.pi * done))
        )  # Loshchilov & Hutter 2017, equation 5

    def info(self) -> dict[str, float]:
        """``lr``, the share of variables ``at_bounds``, and ``gradient_norm`` after the first step."""
        vector = self.variables.project(self._vector)
        at_bounds = (vector == self.variables.lower) | (vector == self.variables.upper)
        return {"lr": self.rate, "at_bounds": float(at_bounds.mean())} | self._info

    def _ask(self) -> list[Candidate]:
        return [self.candidate(self.variables.project(self._vector), needs=_NEEDS, examples=self._batches.current())]

    def _tell(self, evaluations: list[Evaluation]) -> None:
        for evaluation in evaluations:
            gradient = evaluation.gradient
            if gradient is None or not np.isfinite(gradient).all():
                log.warning("adam passed over generation %d: its gradient is missing or not finite", self.generation)
                continue
            self._step(np.asarray(gradient, dtype=np.float64))
        self._batches.advance()

    def _step(self, gradient: Vector) -> None:
        config = self.config
        if config.bound == "clamp":
            gradient = np.where(self._vector == self.variables.project(self._vector), gradient, 0.0)
        self._decay = (self._decay[0] * config.beta1, self._decay[1] * config.beta2)
        self._first = read_only(config.beta1 * self._first + (1 - config.beta1) * gradient)
        self._second = read_only(config.beta2 * self._second + (1 - config.beta2) * gradient**2)
        first = self._first / (1 - self._decay[0])
        second = self._second / (1 - self._decay[1])
        moved = self._vector - self.rate * first / (np.sqrt(second) + config.eps)
        self._vector = read_only(moved) if config.bound == "clamp" else self.variables.project(moved)
        self._info = {"gradient_norm": math.sqrt(math.fsum(gradient**2))}

    def _restart(self, vector: Vector) -> bool:
        self._vector = vector
        self._first = self._second = read_only(np.zeros(len(self.variables)))
        self._decay = (1.0, 1.0)
        self._scale *= RESTART_SCALE
        self._batches.advance()
        return True

    def _state(self) -> State:
        return {
            "vector": self._vector,
            "scale": self._scale,
            "first": self._first,
            "second": self._second,
            "decay": list(self._decay),
            "info": dict(self._info),
            "batches": self._batches.state(),
        }

    def _load(self, state: State) -> None:
        self._vector = read_only(cast(Vector, state["vector"]))
        self._first = read_only(cast(Vector, state["first"]))
        self._second = read_only(cast(Vector, state["second"]))
        decay = cast("list[float]", state["decay"])
        self._decay = (decay[0], decay[1])
        self._scale = cast(float, state["scale"])
        self._info = dict(cast("dict[str, float]", state["info"]))
        self._batches.load(cast(State, state["batches"]))


class _Batches:
    """The data cursor: which fit examples of each task the current generation looks at."""

    def __init__(self, sizes: Mapping[str, int], batch: int | None, generator: np.random.Generator) -> None:
        self.sizes = sizes
        self.parts = {task: 1 if batch is None else max(1, math.ceil(size / batch)) for task, size in sizes.items()}
        self.generator = generator
        self.order: dict[str, npt.NDArray[np.int64]] = {}
        self.at = dict.fromkeys(sizes, 0)
        for task, parts in self.parts.items():
            if parts > 1:
                self.order[task] = generator.permutation(sizes[task])

    def current(self) -> dict[str, tuple[int, ...]] | None:
        """Task -> its positions in rising order; None when every task is seen whole."""
        if not self.order:
            return None
        batches: dict[str, tuple[int, ...]] = {}
        for task, size in self.sizes.items():
            if task in self.order:
                part = np.array_split(self.order[task], self.parts[task])[self.at[task]]
                batches[task] = tuple(sorted(part.tolist()))
            else:
                batches[task] = tuple(range(size))
        return batches

    def advance(self) -> None:
        """Move on by one batch; a task that was seen to its end is shuffled anew."""
        for task in self.order:
            self.at[task] += 1
            if self.at[task] == self.parts[task]:
                self.at[task] = 0
                self.order[task] = self.generator.permutation(self.sizes[task])

    def state(self) -> State:
        generator = cast(State, dict(self.generator.bit_generator.state))
        return {"generator": generator, "order": {**self.order}, "at": {**self.at}}

    def load(self, state: State) -> None:
        order = cast("dict[str, npt.NDArray[np.int64]]", state["order"])
        if {task: len(positions) for task, positions in order.items()} != {t: self.sizes[t] for t in self.order}:
            raise ValueError("the fit split's sizes or driver.batch changed")
        self.order = {task: order[task] for task in self.order}
        self.at = {**cast("dict[str, int]", state["at"])}
        self.generator.bit_generator.state = cast("dict[str, Any]", state["generator"])
