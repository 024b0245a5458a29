"""What drivers that make one step a gradient share: batches, schedule, clipping, bounds, restart.

In: one gradient per generation, of all fit examples or of a mini-batch. Out: one vector per generation. A subclass says
where a gradient moves the vector:

    class Descent(StepDriver):
        name = "descent"

        def _moved(self, gradient):
            return self._vector - self.rate * gradient

The vector is float64. Bounds are kept by projection after the step. ``bound: clamp`` is the clamp inside the objective
of AdaMerging (Yang et al. 2024): it has no gradient beyond the bound, so a variable that went there comes back by what
is left of its momentum or not at all.
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt

from optmerge.config.gradient_drivers import StepConfig
from optmerge.drivers.base import Driver
from optmerge.drivers.state import State
from optmerge.drivers.variables import Variables, read_only
from optmerge.errors import ConfigError
from optmerge.records import Candidate, Evaluation, Need, Vector

log = logging.getLogger(__name__)

RESTART_SCALE = 0.1  # of the step size at every restart
NEEDS: frozenset[Need] = frozenset({"value", "gradient"})


def usable(gradient: Vector | None) -> bool:
    """Whether there is a gradient and all of it is finite."""
    return gradient is not None and bool(np.isfinite(gradient).all())


def norm(vector: Vector) -> float:
    """The Euclidean norm, rounded the same on every machine."""
    return math.sqrt(math.fsum(vector**2))


def share_at_bounds(variables: Variables, vector: Vector) -> float:
    """The share of variables that are at a bound."""
    return float(((vector == variables.lower) | (vector == variables.upper)).mean())


class StepDriver(Driver):
    """One step per gradient, projected to bounds or clamped to them.

    With ``batch``, each task's fit examples are shuffled once per epoch and dealt into batches whose sizes differ by
    at most one, none above ``batch``; a task with no more examples than that is always seen whole. An evaluation
    whose gradient is missing or not finite is passed over: the vector stays, the next batch is drawn.
    """

    needs_gradient: ClassVar[bool] = True
    config: StepConfig

    def _set_up(self) -> None:
        config = self.config
        if config.schedule != "constant" and self.budget is None:
            raise ConfigError(
                f"driver.schedule is '{config.schedule}', which ends where the budget ends, but budget.evaluations is "
                "null. Set budget.evaluations, or driver.schedule to 'constant'."
            )
        self._vector = self.variables.start  # with bound: clamp, not within bounds
        self._scale = 1.0  # of the step size, since the last restart
        self._info: dict[str, float] = {}
        self._batches = Batches(self.fit_sizes, config.batch, np.random.Generator(np.random.PCG64(self.seed)))
        self._forget()

    @property
    def rate(self) -> float:
        """The step size of this generation, in units of a coefficient."""
        if self.config.schedule == "constant":
            return self.config.lr * self._scale
        assert self.budget is not None, "checked at the start"
        done = min(self.generation / self.budget, 1.0)
        if self.config.schedule == "linear":
            return self.config.lr * self._scale * (1.0 - done)
        return (
            self.config.lr * self._scale * 0.5 * (1.0 + math.cos(math.pi * done))
        )  # Loshchilov & Hutter 2017, equation 5

    def info(self) -> dict[str, float]:
        """``lr``, the share of variables ``at_bounds``, and ``gradient_norm`` after the first step."""
        at_bounds = share_at_bounds(self.variables, self.variables.project(self._vector))
        return {"lr": self.rate, "at_bounds": at_bounds} | self._info

    def _ask(self) -> list[Candidate]:
        return [self.candidate(self._vector, needs=NEEDS, examples=self._batches.current())]

    def _tell(self, evaluations: list[Evaluation]) -> None:
        for evaluation in evaluations:
            if not usable(evaluation.gradient):
                log.warning(
                    "%s passed over generation %d: its gradient is missing or not finite", self.name, self.generation
                )
                continue
            self._step(np.asarray(evaluation.gradient, dtype=np.float64))
        self._batches.advance()

    def _step(self, gradient: Vector) -> None:
        clamp = self.config.bound == "clamp"
        if clamp:
            gradient = np.where(self._vector == self.variables.project(self._vector), gradient, 0.0)
        length = norm(gradient)
        if self.config.clip is not None and length > self.config.clip:
            gradient = gradient * (self.config.clip / length)
        moved = self._moved(gradient)
        self._vector = read_only(moved) if clamp else self.variables.project(moved)
        self._info = {"gradient_norm": length}  # before clipping

    @abstractmethod
    def _moved(self, gradient: Vector) -> Vector:
        """Where one step from ``_vector`` leads, bounds aside; learns from the gradient."""

    @abstractmethod
    def _forget(self) -> None:
        """Start, or start anew, without any memory of gradients."""

    @abstractmethod
    def _memory(self) -> State:
        """What is remembered of gradients."""

    @abstractmethod
    def _recall(self, state: State) -> None:
        """Take over what `_memory` gave, from among the other entries of ``state``."""

    def _restart(self, vector: Vector) -> bool:
        self._vector = vector
        self._forget()
        self._scale *= RESTART_SCALE
        self._batches.advance()
        return True

    def _state(self) -> State:
        own: State = {
            "vector": self._vector,
            "scale": self._scale,
            "info": dict(self._info),
            "batches": self._batches.state(),
        }
        return own | self._memory()

    def _load(self, state: State) -> None:
        self._vector = read_only(cast(Vector, state["vector"]))
        self._scale = cast(float, state["scale"])
        self._info = dict(cast("dict[str, float]", state["info"]))
        self._batches.load(cast(State, state["batches"]))
        self._recall(state)


class Batches:
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
        """What the order of all later batches depends on."""
        generator = cast(State, dict(self.generator.bit_generator.state))
        return {"generator": generator, "order": {**self.order}, "at": {**self.at}}

    def load(self, state: State) -> None:
        """Take over what `state` gave; ValueError if the sizes are others."""
        order = cast("dict[str, npt.NDArray[np.int64]]", state["order"])
        if {task: len(positions) for task, positions in order.items()} != {t: self.sizes[t] for t in self.order}:
            raise ValueError("the fit split's sizes or driver.batch changed")
        self.order = {task: order[task] for task in self.order}
        self.at = {**cast("dict[str, int]", state["at"])}
        self.generator.bit_generator.state = cast("dict[str, Any]", state["generator"])
