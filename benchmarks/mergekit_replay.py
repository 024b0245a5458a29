"""mergekit-evolve's search as a driver of our loop, so that it can be judged by any objective on any models.

    driver = MergekitEvolve(CmaConfig(), variables, seed=np.random.SeedSequence(0), fit_sizes={}, budget=100)
    outcome = run_loop(driver, InProcess(judge), journal, BudgetConfig(evaluations=whole_generations(100, 24)), store)

What it does is what mergekit 0.1.5's ``mergekit-evolve`` asks of pycma: CMA-ES with its own defaults from 1/n in every
coordinate, sigma 1/6, no bounds, and weights that are the coordinates' absolute values (``allow_negative_weights`` is
off), of which the strategy is not told. mergekit seeds it by the clock; here it is seeded. The start is never
evaluated, and the budget is kept to the end of a generation.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import cma
import numpy as np

from optmerge.config.drivers import CmaConfig
from optmerge.drivers.base import Driver
from optmerge.drivers.state import State
from optmerge.drivers.variables import Variables
from optmerge.records import Candidate, Evaluation, Vector

SIGMA = 1 / 6
EVALUATIONS = 100


def population(dimension: int) -> int:
    """Candidates of a generation (Hansen 2016, equation 48)."""
    return 4 + math.floor(3 * math.log(dimension))


def whole_generations(evaluations: int, dimension: int) -> int:
    """Evaluations of the whole generations that ``evaluations`` begins.

    >>> whole_generations(100, 24)
    104
    """
    size = population(dimension)
    return -(-evaluations // size) * size


class MergekitEvolve(Driver):
    """See the module; the variables' start is 1/n, and their bounds are wide enough never to matter."""

    name: ClassVar[str] = "mergekit-evolve"

    def __init__(
        self,
        config: CmaConfig,
        variables: Variables,
        *,
        seed: np.random.SeedSequence,
        fit_sizes: Mapping[str, int],
        budget: int | None,
    ) -> None:
        super().__init__(config, variables, seed=seed, fit_sizes=fit_sizes, budget=budget)
        self._told: list[list[float]] = []
        self._begin()

    def _begin(self) -> None:
        generator = np.random.RandomState(np.random.MT19937(self.seed))
        options = {
            "randn": generator.randn,
            "seed": np.nan,
            "signals_filename": "",
            "verbose": -9,
            "verb_log": 0,
            "verb_disp": 0,
        }
        self._strategy: Any = cma.CMAEvolutionStrategy(self.variables.start, SIGMA, options)
        self._solutions: list[Vector] = []

    def _ask(self) -> list[Candidate]:
        self._draw()
        return [self.candidate(np.abs(solution)) for solution in self._solutions]

    def _draw(self) -> None:
        with warnings.catch_warnings(action="ignore"):
            self._solutions = self._strategy.ask()

    def _tell(self, evaluations: list[Evaluation]) -> None:
        self._learn([float(evaluation.value) for evaluation in evaluations])

    def _learn(self, values: list[float]) -> None:
        self._told.append(values)
        if len(values) == len(self._solutions):
            with warnings.catch_warnings(action="ignore"):
                self._strategy.tell(self._solutions, values)

    def _state(self) -> State:
        return {"values": np.array(self._told, dtype=np.float64)}

    def _load(self, state: State) -> None:
        self._told = []
        self._begin()
        for values in cast("np.ndarray[Any, Any]", state["values"]).tolist():
            self._draw()
            self._learn(values)
