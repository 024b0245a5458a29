"""What drivers are checked on: a quadratic over a few variables, and a search of it as the loop would make one.

    driver = begin(functools.partial(MyDriver, MyConfig()))
    vectors = run(driver)                       # every vector that it asked for
    quadratic(Candidate(vectors[-1])).value     # 0 at `optimum`

The checks are in `optmerge.drivers.testing`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

import numpy as np

from optmerge.drivers.base import Driver
from optmerge.drivers.variables import Variables
from optmerge.records import OBJECTIVE, Candidate, Evaluation, Vector

Evaluate = Callable[[Candidate], Evaluation]

FIT_SIZES: Mapping[str, int] = {"first": 10, "second": 7}
EVALUATIONS = 60


class Maker(Protocol):
    """Makes a fresh driver."""

    def __call__(
        self, variables: Variables, *, seed: np.random.SeedSequence, fit_sizes: Mapping[str, int], budget: int | None
    ) -> Driver:
        """A driver at its start."""


def variables(dimension: int = 3) -> Variables:
    """Variables in a box around `optimum`, which starts far from it."""
    names = tuple(f"x{index}" for index in range(dimension))
    return Variables(names, np.full(dimension, -0.5), np.full(dimension, 2.0), np.full(dimension, 0.1))


def optimum(dimension: int) -> Vector:
    """Where `quadratic` is zero: 1 and 1.25 in turn."""
    return 1.0 + 0.25 * (np.arange(dimension, dtype=np.float64) % 2)


def quadratic(candidate: Candidate) -> Evaluation:
    """The mean squared distance from the optimum, with its gradient; rounded the same on every machine.

    Where a driver needs it, examples look at the variables in turn: each costs a variable's squared distance, and a
    task's part is their mean.
    """
    offset = candidate.vector - optimum(len(candidate.vector))
    value = math.fsum(offset**2) / len(offset)
    costs = example_costs(candidate, offset**2)
    wanted = costs if "per_example" in candidate.needs else None
    matrix = 2 / len(offset) * np.eye(len(offset)) if "jacobian" in candidate.needs else None
    gradient = 2 * offset / len(offset)
    return Evaluation(value, _parts(candidate, costs), gradient=gradient, curvature=matrix, per_example=wanted)


def example_costs(candidate: Candidate, cycle: Vector) -> dict[str, dict[str, Vector]]:
    """What the examples that a candidate is judged on cost, where the examples of a task cost a cycle of values."""
    looked = candidate.examples or {task: tuple(range(size)) for task, size in FIT_SIZES.items()}
    return {task: {OBJECTIVE: cycle[np.asarray(at) % len(cycle)]} for task, at in looked.items()}


def _parts(candidate: Candidate, costs: Mapping[str, Mapping[str, Vector]]) -> dict[str, float]:
    """Each task's mean cost, where the driver needs it."""
    if "per_task" not in candidate.needs:
        return {}
    return {task: math.fsum(arrays[OBJECTIVE]) / len(arrays[OBJECTIVE]) for task, arrays in costs.items()}


def noisy(seed: int, *, scale: float = 0.05) -> Evaluate:
    """`quadratic` with Gaussian noise of standard deviation ``scale`` on all values and every partial derivative."""
    generator = np.random.default_rng(seed)

    def evaluate(candidate: Candidate) -> Evaluation:
        true = quadratic(candidate)
        assert true.gradient is not None
        noise = scale * generator.standard_normal(1 + len(true.gradient))
        costs = {
            task: {OBJECTIVE: arrays[OBJECTIVE] + np.resize(noise[1:], len(arrays[OBJECTIVE]))}
            for task, arrays in (true.per_example or {}).items()
        }
        parts = {task: part + float(noise[0]) for task, part in true.per_task.items()}
        return Evaluation(
            true.value + float(noise[0]),
            parts,
            gradient=true.gradient + noise[1:],
            curvature=true.curvature,
            per_example=costs or None,
        )

    return evaluate


def begin(make: Maker, *, dimension: int = 3, seed: int = 0, budget: int | None = EVALUATIONS) -> Driver:
    """A fresh driver over `variables`."""
    return make(variables(dimension), seed=np.random.SeedSequence(seed), fit_sizes=FIT_SIZES, budget=budget)


def run(driver: Driver, evaluate: Evaluate = quadratic, *, evaluations: int = EVALUATIONS) -> list[Vector]:
    """Search as the loop does: cut to the budget, failures told as the generation's worst. Gives every vector asked."""
    vectors: list[Vector] = []
    while len(vectors) < evaluations and not driver.stop():
        candidates = driver.ask()[: evaluations - len(vectors)]
        results = [evaluate(candidate) for candidate in candidates]
        finite = [result.value for result in results if not result.failed]
        if finite:
            told = [replace(r, value=max(finite), error=None) if r.failed else r for r in results]
            driver.tell(candidates, told)
        else:
            driver.tell([], [])
        vectors += [candidate.vector for candidate in candidates]
    return vectors


def same(first: list[Vector], second: list[Vector]) -> bool:
    """Whether two trajectories agree bit for bit."""
    return len(first) == len(second) and all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))
