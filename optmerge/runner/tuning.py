"""Tuning one merging method by itself: its declared settings and its scale, within a budget of evaluations on select.

    tuned = Tuning(TiesConfig(), maker, judge).run(folder, evaluations=20, seed=0)
    tuned.config, tuned.scale, tuned.select

The first point is the published one, exactly. From there on Optuna's TPE proposes, in the one loop that every search
goes through; what that loop calls fit is the select split here, so that a method with few settings is tuned on what
judges it. Its trajectory is kept, so that an interrupted tuning goes on where it was.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optmerge.config.drivers import OptunaConfig
from optmerge.config.methods import MethodSettings
from optmerge.config.methods.base import Searched
from optmerge.config.schema import BudgetConfig
from optmerge.drivers import make_driver
from optmerge.drivers.variables import Variables
from optmerge.errors import RunError, RunFailed, RunInterrupted
from optmerge.records import Candidate, Evaluation, Trajectory, Vector
from optmerge.runner.executor import InProcess
from optmerge.runner.journal import Journal
from optmerge.runner.loop import run_loop
from optmerge.runner.making import Maker
from optmerge.runner.problem import Problem
from optmerge.runner.state import StateStore

SCALE = "scale"
REACH = 3.0  # the scale is searched from the published one divided by this to it multiplied by this

Select = Callable[[Problem, float], Evaluation]
"""(a method's problem, scale) -> its objective on select."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """The best point.

    Attributes:
        config: The method's settings.
        scale: Of its delta.
        select: The objective on select.
        evaluations: How many there were.
        seconds: Of all of them, over interruptions.
    """

    config: MethodSettings
    scale: float
    select: float
    evaluations: int
    seconds: float


class Tuning:
    """One method's points, as a vector for a driver: the scale, then every setting that is declared as searched.

    Numbers that are searched by their logarithm are logarithms in the vector.

    Args:
        published: The method at its published settings.
        maker: Makes a method's delta.
        select: Judges it.
    """

    def __init__(self, published: MethodSettings, maker: Maker, select: Select) -> None:
        self.published = published
        self._maker = maker
        self._select = select
        scale = published.facts.scale
        self._searched = {SCALE: Searched(scale / REACH, scale * REACH, log=True)} | published.tuned()
        self._last: tuple[bytes, Evaluation] | None = None
        low = [_inward(how, how.low) for how in self._searched.values()]
        high = [_inward(how, how.high) for how in self._searched.values()]
        start = [self._start(name, how) for name, how in self._searched.items()]
        self.variables = Variables(tuple(self._searched), np.array(low), np.array(high), np.array(start))

    def identity(self) -> list[Any]:
        """Plain data of what a vector means."""
        ranges = [[name, how.low, how.high, how.log] for name, how in self._searched.items()]
        return [type(self.published).method_name(), self.published.model_dump(mode="json"), ranges]

    def point(self, vector: Vector) -> tuple[MethodSettings, float]:
        """The settings and the scale that a vector stands for; the start is the published ones, exactly."""
        if np.array_equal(vector, self.variables.start):
            return self.published, self.published.facts.scale
        values = {
            name: float(np.clip(math.exp(value) if how.log else value, how.low, how.high))
            for (name, how), value in zip(self._searched.items(), vector.tolist(), strict=True)
        }
        scale = values.pop(SCALE)
        fields = type(self.published).model_fields
        whole = {name: round(value) for name, value in values.items() if fields[name].annotation is int}
        return type(self.published).model_validate(self.published.model_dump() | values | whole), scale

    def run(self, folder: Path, *, evaluations: int, seed: int, stop: Callable[[], str | None] = lambda: None) -> Tuned:
        """Tune, or go on.

        Args:
            folder: Of this tuning's trajectory; one folder for one budget and seed.
            evaluations: How many points, the published one included.
            seed: Of the sampler.
            stop: Asked before every evaluation.

        Raises:
            RunInterrupted: ``stop`` gave a reason.
            RunFailed: No point has a value.
        """
        driver = make_driver(
            OptunaConfig(),
            self.variables,
            seed=np.random.SeedSequence(seed),
            fit_sizes={},
            budget=evaluations,
        )
        trajectory = Trajectory.open(folder)
        try:
            with closing(driver):
                budget = BudgetConfig(evaluations=evaluations)
                journal = Journal(trajectory)
                outcome = run_loop(
                    driver, InProcess(self), journal, budget, StateStore(folder / "state"), stop=stop, collapse="warn"
                )
        finally:
            trajectory.close()
        progress = outcome.progress
        if outcome.best is None or progress.best is None:
            raise RunFailed(f"none of {evaluations} points has a value on select")
        config, scale = self.point(outcome.best)
        return Tuned(config, scale, progress.best, progress.evaluations, progress.seconds)

    def fit(self, candidate: Candidate) -> Evaluation:
        """The objective of a point on select; a method that cannot be made there is a failed evaluation."""
        begun = time.perf_counter()
        try:
            config, scale = self.point(candidate.vector)
            problem = self._maker.make(config).problem
            found = self._select(problem, scale)
        except (RunInterrupted, RunError):
            raise
        except Exception as error:  # a decomposition that does not converge, memory that runs out: tuning goes on
            told = " ".join(str(error).split()) or "no message"
            found = Evaluation(
                math.nan,
                error=f"{type(error).__name__}: {told[:300]}",
                seconds={"merge": time.perf_counter() - begun},
            )
        self._last = candidate.vector.tobytes(), found
        return found

    def select(self, vector: Vector) -> Evaluation:
        """The same once more, without measuring it twice."""
        if self._last is not None and self._last[0] == vector.tobytes():
            return self._last[1]
        return self.fit(Candidate(vector))

    def _start(self, name: str, how: Searched) -> float:
        """Where the published value stands; the middle where it is null, or outside of what is searched."""
        value = self.published.facts.scale if name == SCALE else getattr(self.published, name)
        low, high = _inward(how, how.low), _inward(how, how.high)
        if value is None or not how.low <= value <= how.high:
            return (low + high) / 2
        return float(np.clip(_inward(how, value), low, high))


def _inward(how: Searched, value: float) -> float:
    return math.log(value) if how.log else float(value)
