"""CMA-ES by pycma's ask and tell.

In: the values of a generation's candidates. Out: a population per generation; the first one begins with the start.

    driver = CmaDriver(CmaConfig(sigma=0.1), variables, seed=seed, fit_sizes={}, budget=300)

Bounds are pycma's `BoundTransform`: the identity well inside the bounds, a smooth fold near them, so that every
sample is feasible and the strategy never learns from a repaired point.

The state holds no pickle of pycma's (loading one can run code): it is what the strategy was told, a few bytes a
candidate, and loading replays it, 3-140 ms a generation. Mean and step size are compared with the saved ones
afterwards, bit for bit, so that another pycma or another linear algebra cannot go unnoticed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import cma
import numpy as np

from optmerge.config.drivers import CmaConfig
from optmerge.drivers.base import Driver, Variables
from optmerge.drivers.state import State
from optmerge.errors import RunError
from optmerge.records import Candidate, Evaluation, Vector

DIAGONAL_FROM = 200  # variables from which `diagonal: auto` drops correlations: learning d² of them takes too long
FLAT_LIMIT = 10  # generations in a row whose candidates all score the same before the search gives up

# pycma's termination criteria (cma.CMAOptions, section "tol") in words; the others are not reachable from here
REASONS: dict[str, str] = {
    "tolx": "converged: the step is below 1e-11 in every variable",
    "tolfun": "converged: the values of the last generations differ by less than 1e-11",
    "tolfunhist": "converged: the best values of the last generations differ by less than 1e-12",
    "tolstagnation": "stagnated: neither the best nor the median value improved over many generations",
    "tolxstagnation": "stagnated: the mean of the distribution hardly moves any more",
    "tolfacupx": "diverged: the step grew a thousandfold; start with a larger driver.sigma",
    "tolupsigma": "diverged: the step size grows without progress",
    "tolconditioncov": "degenerate: the condition number of the covariance exceeds 1e14",
    "noeffectaxis": "converged: a step along a principal axis no longer changes the mean",
    "noeffectcoord": "converged: a step along a variable no longer changes the mean",
    "maxiter": "pycma's limit of generations for this dimension and population is reached",
}


class CmaDriver(Driver):
    """CMA-ES (Hansen 2016), with active covariance update; diagonal (sep-CMA-ES) where `CmaConfig.diagonal` says so.

    The start stands before the first population, as one candidate more; it is the mean of that population, so its
    own value is recorded and not told to the strategy. Of a generation that the budget cut short, too few candidates
    for recombination are likewise recorded and not told. So is a generation in which all values are equal: ranking
    it would be a random step. `FLAT_LIMIT` such in a row stop the search; pycma's own flatness criterion, which a
    few failed generations can trigger, is off. A space of one variable is searched as one of two whose second is not
    used, because pycma needs two; its ``info`` describes both.

    >>> import numpy as np
    >>> variables = Variables(("a", "b"), lower=[0, 0], upper=[1, 1], start=[0.3, 0.3])
    >>> driver = CmaDriver(CmaConfig(), variables, seed=np.random.SeedSequence(0), fit_sizes={}, budget=None)
    >>> candidates = driver.ask()
    >>> len(candidates), candidates[0].vector.tolist()
    (7, [0.3, 0.3])
    """

    name: ClassVar[str] = "cma"

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
        self.config = config
        dimension = max(len(variables), 2)
        self.population = config.population or 4 + math.floor(3 * math.log(dimension))  # Hansen 2016, equation 48
        self.diagonal = dimension >= DIAGONAL_FROM if config.diagonal == "auto" else config.diagonal
        self._begin()

    def stop(self) -> dict[str, str]:
        """Reasons that pycma gives, in words, and ``flat`` when the objective does not tell candidates apart."""
        reasons = dict(self._reasons)
        if self._flat >= FLAT_LIMIT:
            reasons["flat"] = (
                f"all candidates of {self._flat} generations in a row scored the same: the objective does not tell "
                "them apart, or all but one failed each time"
            )
        return reasons

    def info(self) -> dict[str, float]:
        """``sigma``, ``axis_ratio`` (longest to shortest), ``std_min`` and ``std_max`` (units of a coefficient)."""
        return dict(self._info)

    def _begin(self) -> None:
        """A new strategy at the start, with its generator at the seed's first number."""
        generator = np.random.RandomState(np.random.MT19937(self.seed))
        box = self.variables
        copies = 2 if len(box) == 1 else 1  # pycma fails in one dimension: a second variable that nobody reads
        options = {
            "bounds": [np.tile(box.lower, copies).tolist(), np.tile(box.upper, copies).tolist()],
            "BoundaryHandler": cma.BoundTransform,
            "popsize": self.population,
            "CMA_diagonal": self.diagonal,
            "randn": generator.randn,  # numpy's global generator otherwise, which evaluators reseed
            "seed": np.nan,  # "do not seed anything"
            "tolflatfitness": np.inf,
            "signals_filename": "",  # else stop() reads options from a file in the working directory
            "verbose": -9,
            "verb_log": 0,
            "verb_disp": 0,
        }
        with warnings.catch_warnings(action="ignore"):
            self._strategy: Any = cma.CMAEvolutionStrategy(np.tile(box.start, copies), self.config.sigma, options)
        self._solutions: list[Vector] = []  # pycma's own objects: by them it finds the points before the bounds' fold
        self._told: list[list[float]] = []  # every value by closed generation; the first one's begins with the start's
        self._flat = 0
        self._reasons: dict[str, str] = {}
        self._look()

    def _ask(self) -> list[Candidate]:
        self._draw()
        candidates = [self.candidate(solution[: len(self.variables)]) for solution in self._solutions]
        return candidates if self.generation else [self.candidate(self.variables.start), *candidates]

    def _tell(self, evaluations: list[Evaluation]) -> None:
        self._learn([float(evaluation.value) for evaluation in evaluations])

    def _draw(self) -> None:
        with warnings.catch_warnings(action="ignore"):
            self._solutions = self._strategy.ask()

    def _learn(self, values: list[float]) -> None:
        """Close a generation; resuming calls this with the same values in the same order."""
        ours = values if self._told else values[1:]
        self._told.append(values)
        least = max(self._strategy.sp.weights.mu, min(self.population, 3))  # mu to recombine; pycma wants 3
        if len(ours) < least:
            return
        if min(ours) == max(ours):
            self._flat += 1
            return
        self._flat = 0
        with warnings.catch_warnings(action="ignore"):  # about generations that the budget cut short
            self._strategy.tell(self._solutions[: len(ours)], ours)
            self._reasons = {word: REASONS.get(word, f"pycma's criterion {word}") for word in self._strategy.stop()}
        self._look()  # not in info(): both stop() and the lazy axes change the strategy, so they run once, here

    def _look(self) -> None:
        """Note what `info` says."""
        deviations = np.asarray(self._strategy.stds, dtype=np.float64)
        axes = deviations if self.diagonal else np.asarray(self._strategy.D, dtype=np.float64)
        self._info = {
            "sigma": float(self._strategy.sigma),
            "axis_ratio": float(axes.max() / axes.min()),
            "std_min": float(deviations.min()),
            "std_max": float(deviations.max()),
        }

    def _state(self) -> State:
        return {
            "counts": np.array([len(values) for values in self._told], dtype=np.int64),
            "values": np.array([value for values in self._told for value in values], dtype=np.float64),
            "mean": np.array(self._strategy.mean, dtype=np.float64),
            "sigma": float(self._strategy.sigma),
        }

    def _load(self, state: State) -> None:
        values = cast(Vector, state["values"])
        counts = cast(Vector, state["counts"])
        self._begin()
        for generation in np.split(values, np.cumsum(counts)[:-1]) if len(counts) else []:
            self._draw()
            self._learn(generation.tolist())
        mean = cast(Vector, state["mean"])
        if not np.array_equal(self._strategy.mean, mean) or self._strategy.sigma != state["sigma"]:
            raise RunError(
                f"Replaying {len(counts)} generations of cma does not end where the saved state was, so the search "
                f"cannot be continued exactly. pycma is {cma.__version__} here; the run's manifest.json has the "
                "versions, settings and thread count it was made with: resume with those."
            )
