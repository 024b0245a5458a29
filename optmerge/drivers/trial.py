"""What drivers that try one point a generation share: the trial, the point that trials start from, and their state.

In: value and gradient at the trial, of the whole fit split. A subclass says whether the trial becomes the point, and
where the next one lies:

    class Halving(TrialDriver):
        name = "halving"

        def _tell(self, evaluations): ...       # sets self._base and self._trial
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from optmerge.drivers.base import Driver
from optmerge.drivers.gradient import NEEDS, RESTART_SCALE
from optmerge.drivers.state import State
from optmerge.drivers.variables import read_only
from optmerge.records import Candidate, Need, Vector

Matrix = npt.NDArray[np.float64]


class Point(NamedTuple):
    """Where a search is, and what is known there.

    Attributes:
        vector: float64[d].
        value: Of the objective.
        gradient: float64[d].
        matrix: float64[d, d], the Gauss-Newton matrix; None where nobody asked for it.
    """

    vector: Vector
    value: float
    gradient: Vector
    matrix: Matrix | None = None

    def state(self) -> State:
        """What `of_state` makes the point of again."""
        state: State = {"vector": self.vector, "value": self.value, "gradient": self.gradient}
        return state if self.matrix is None else state | {"matrix": self.matrix}


def of_state(state: State) -> Point:
    """The point of its `Point.state`."""
    vector, gradient = (read_only(cast(Vector, state[key])) for key in ("vector", "gradient"))
    matrix = read_only(cast(Matrix, state["matrix"])) if "matrix" in state else None
    return Point(vector, cast(float, state["value"]), gradient, matrix)


class TrialDriver(Driver):
    """One trial a generation, from the start on.

    Attributes:
        needs: What is asked of a trial.
    """

    needs_gradient: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = NEEDS

    def _set_up(self) -> None:
        self._scale = 1.0  # of the first step, since the last restart
        self._begin(self.variables.start)

    def _begin(self, vector: Vector) -> None:
        """Start, or start anew, with ``vector`` as the first trial."""
        self._trial = vector
        self._base: Point | None = None
        self._info: dict[str, float] = {}

    def _ask(self) -> list[Candidate]:
        return [self.candidate(self._trial, needs=self.needs)]

    def _converged(self, tolerance: float) -> dict[str, str]:
        """A reason to stop, where the gradient moves no variable by more than this, bounds kept; else none."""
        assert self._base is not None
        vector, gradient = self._base.vector, self._base.gradient
        reach = float(np.abs(self.variables.project(vector - gradient) - vector).max())
        if reach > tolerance:
            return {}
        return {"converged": f"within {tolerance:g}, no coefficient is moved by the gradient any more"}

    def _restart(self, vector: Vector) -> bool:
        self._scale *= RESTART_SCALE
        self._begin(vector)
        return True

    @abstractmethod
    def _memory(self) -> State:
        """What is remembered beside the trial and the point."""

    @abstractmethod
    def _recall(self, state: State) -> None:
        """Take over what `_memory` gave, from among the other entries of ``state``."""

    def _state(self) -> State:
        head: State = {"trial": self._trial, "info": dict(self._info)}
        if self._base is not None:
            head["base"] = self._base.state()
        return head | self._memory()

    def _load(self, state: State) -> None:
        self._begin(read_only(cast(Vector, state["trial"])))
        self._info = dict(cast("dict[str, float]", state["info"]))
        if "base" in state:
            self._base = of_state(cast(State, state["base"]))
        self._recall(state)
