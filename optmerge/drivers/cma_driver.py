"""CMA-ES by pycma's ask and tell.

In: the values of a generation's candidates. Out: a population per generation; the first one begins with the start.

    driver = CmaDriver(CmaConfig(sigma=0.1), variables, seed=seed, fit_sizes={}, budget=300)

Bounds are pycma's `BoundTransform`: the identity well inside the bounds, a smooth fold near them, so that every
sample is feasible and the strategy never learns from a repaired point. Whole numbers are its ``integer_variables``.
With mini-batches, `optmerge.drivers.uncertainty` says how many examples a generation looks at.

The state holds no pickle of pycma's (loading one can run code): it is what the strategy was told, a few bytes a
candidate, and loading replays it, 3-140 ms a generation. Mean and step size are compared with the saved ones
afterwards, bit for bit, so that another pycma or another linear algebra cannot go unnoticed.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import cma
import numpy as np

from optmerge.config.cma import CmaConfig
from optmerge.drivers.base import Driver
from optmerge.drivers.centring import Centring
from optmerge.drivers.deviations import deviations_of
from optmerge.drivers.state import State
from optmerge.drivers.uncertainty import draw_batches, judged_again, next_size, rank_changes
from optmerge.errors import RunError
from optmerge.records import Candidate, Evaluation, Vector

log = logging.getLogger(__name__)

DIAGONAL_FROM = 200  # variables from which `covariance: auto` drops correlations: learning d² of them takes too long
FLAT_LIMIT = 10  # generations in a row whose candidates all score the same before the search gives up
HALF = 0.5  # a whole number is what rounds to it, so that a range of them reaches so far beyond its ends
WHOLE_SPREAD = 6.0  # a range of whole numbers is so many standard deviations wide at the start

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


@dataclass(frozen=True, slots=True)
class _Given:
    """A candidate that is out: pycma's own object (none for the start), and when it was drawn."""

    solution: Vector | None
    updates: int
    restarts: int


class CmaDriver(Driver):
    """CMA-ES (Hansen 2016), with active covariance update; diagonal (sep-CMA-ES) where `CmaConfig.covariance` says so.

    The start stands before the first population, as one candidate more; it is the mean of that population, so its
    own value is recorded and not told to the strategy. Of a generation that the budget cut short, too few candidates
    for recombination are likewise recorded and not told. So is a generation in which all values are equal: ranking
    it would be a random step. `FLAT_LIMIT` such in a row stop the search; pycma's own flatness criterion, which a
    few failed generations can trigger, is off. A space of one variable is searched as one of two whose second is not
    used, because pycma needs two; its ``info`` describes both.

    What `Variables` knows enters at the start. With ``scale: norms`` the standard deviations are inverse to the norms
    (`optmerge.drivers.deviations`); with ``scale: fisher`` to the root of the curvature, so that they are those of the
    coordinates in which an empirical Fisher matrix that is diagonal is the identity. The first ``known`` vectors take
    the places of samples in the first population, exactly as they are; where they lie far out, pycma shortens what it
    learns from them (Hansen 2011, "Injecting external solutions into CMA-ES"). With ``restarts``, a strategy that stops
    by itself is followed by one that begins at the start again, with the first step size and twice the population
    (IPOP-CMA-ES, Auger & Hansen 2005, there from a random point; a random point of these boxes is a bad model, so that
    the larger population alone does the work).

    Whole numbers are rounded samples whose standard deviation cannot vanish; `Centring` says what is learnt from
    them. Choices without an order are numbered in the order in which they are listed.

    With ``batch``, all candidates of a generation see the same examples. Unless ``noise`` is ``keep``, the last ones
    stand at the end of the generation once more, on a second batch; the strategy is not told what they were worth
    there. With ``bounds: fold`` a sample x becomes lower + abs(x - lower), cut at the upper bound, and the strategy
    goes on with x: what mergekit-evolve does with its weights, whose sign it drops.

    Without generations (`draw` and `absorb`, not with ``batch``) every candidate is drawn from the strategy as it is
    then, and the strategy learns whenever as many values as a population has are there. What was drawn before it last
    learnt is shortened to a distance that the strategy could have drawn (Hansen 2011), so that a step size that has
    become smaller in the meantime does not grow by what is late; what was drawn before a restart is not told. The step
    size is then always adapted by the evolution path: pycma's two-point adaptation, which it takes from 300 variables
    on, compares two samples of one generation.

    >>> import numpy as np
    >>> from optmerge.drivers import Variables
    >>> variables = Variables(("a", "b"), lower=[0, 0], upper=[1, 1], start=[0.3, 0.3])
    >>> driver = CmaDriver(CmaConfig(), variables, seed=np.random.SeedSequence(0), fit_sizes={}, budget=None)
    >>> candidates = driver.ask()
    >>> len(candidates), candidates[0].vector.tolist()
    (7, [0.3, 0.3])
    """

    name: ClassVar[str] = "cma"
    takes_integers: ClassVar[bool] = True
    config: CmaConfig

    def _set_up(self) -> None:
        config, variables = self.config, self.variables
        dimension = max(len(variables), 2)
        whole = np.zeros(len(variables), dtype=np.bool_) if variables.integer is None else variables.integer
        self._whole = whole.astype(np.float64)  # 1 where a variable takes whole numbers
        usual = 4 + math.floor(3 * math.log(dimension))  # Hansen 2016, equation 48
        if whole.any():
            usual = math.floor(6 + 3 * math.log(dimension * whole.sum()))  # pycma's own choice
        self._least = config.population or usual
        self.diagonal = dimension >= DIAGONAL_FROM if config.covariance == "auto" else config.covariance == "diagonal"
        deviations = deviations_of(config, variables)
        spread = (variables.upper - variables.lower + 1.0) / WHOLE_SPREAD / config.sigma
        self._deviations = np.where(whole, spread, deviations) if whole.any() else deviations
        self._most = max(self.fit_sizes.values(), default=0)  # examples of a batch that sees every task whole
        self._known = list(variables.known[: min(config.known, self._least // 2)])
        self._in_generations = True
        self._begin()

    @property
    def population(self) -> int:
        """Candidates per generation; the start stands before the first one's."""
        return self._least << self._restarts

    @property
    def overlaps(self) -> bool:
        """Not where the candidates of a generation share a batch that others do not see."""
        return self.config.batch is None

    @property
    def quorum(self) -> int:
        """A population, and once the start."""
        return self.population + (not self._start_known)

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
        """``sigma``, ``axis_ratio`` (longest to shortest), ``std_min`` and ``std_max`` (units of a coefficient).

        With ``restarts`` also how many there were, ``restart``, and the ``population``. With ``batch`` the examples of
        the next generation's, and as ``noise`` by how much ranks change more than is acceptable.
        """
        return dict(self._info)

    def _begin(self) -> None:
        """Nothing told yet, and the generator at the seed's first number."""
        self._generator = np.random.RandomState(np.random.MT19937(self.seed))
        self._restarts = 0
        self._solutions: list[Vector] = []  # pycma's own objects: by them it finds the points before the bounds' fold
        self._told: list[list[float]] = []  # every value by closed generation; the first one's begins with the start's
        self._size = self.config.batch or self._most  # examples of a batch
        self._noise: float | None = None  # as measured last
        self._start_known = False  # where there are no generations
        self._pool: deque[tuple[Vector, Vector | None]] = deque()  # drawn and not given out, with pycma's own objects
        self._given: dict[int, _Given] = {}
        self._updates = 0  # how often the strategy has learnt
        self._new_strategy()
        copies = 2 if len(self.variables) == 1 else 1
        if self._known:
            inverse = self._strategy.boundary_handler.inverse
            self._strategy.inject([inverse(np.tile(vector, copies)) for vector in self._known], force=True)

    def _new_strategy(self) -> None:
        """A strategy at the start that draws on from the generator."""
        box = self.variables
        copies = 2 if len(box) == 1 else 1  # pycma fails in one dimension: a second variable that nobody reads
        lower, upper = box.lower - HALF * self._whole, box.upper + HALF * self._whole
        plain = self.config.scale == "none" and not self._whole.any()
        options = {
            "bounds": None
            if self.config.bounds == "fold"
            else [np.tile(lower, copies).tolist(), np.tile(upper, copies).tolist()],
            "BoundaryHandler": cma.BoundTransform,
            "integer_variables": np.flatnonzero(np.tile(self._whole, copies)).tolist(),
            "popsize": self.population,
            "CMA_diagonal": self.diagonal,
            "CMA_stds": None if plain else np.tile(self._deviations, copies).tolist(),
            "AdaptSigma": True if self._in_generations else cma.sigma_adaptation.CMAAdaptSigmaCSA,
            "randn": self._generator.randn,  # numpy's global generator otherwise, which evaluators reseed
            "seed": np.nan,  # "do not seed anything"
            "tolflatfitness": np.inf,
            "signals_filename": "",  # else stop() reads options from a file in the working directory
            "verbose": -9,
            "verb_log": 0,
            "verb_disp": 0,
        }
        with warnings.catch_warnings(action="ignore"):
            self._strategy: Any = cma.CMAEvolutionStrategy(np.tile(box.start, copies), self.config.sigma, options)
        self._asked_since = False
        self._pool.clear()
        if self._whole.any():
            lowest, highest = np.tile(box.lower, copies), np.tile(box.upper, copies)
            self._strategy.integer_centering = Centring(lowest, highest, np.tile(self._whole > 0, copies))
        self._flat = 0
        self._reasons: dict[str, str] = {}
        self._look()

    def _ask(self) -> list[Candidate]:
        vectors = self._population(first=not self.generation)
        if not self.generation:
            vectors = [self.variables.start, *vectors]
        if self._size >= self._most:
            return [self.candidate(vector) for vector in vectors]
        first, second = draw_batches(self.fit_sizes, self._size, seed=self.seed, generation=self.generation)
        again = judged_again(self.population) if self.config.noise == "grow" else 0
        return [self.candidate(vector, examples=first) for vector in vectors] + [
            self.candidate(vector, examples=second) for vector in vectors[len(vectors) - again :]
        ]

    def _population(self, *, first: bool) -> list[Vector]:
        """The vectors of as many new samples as a population has; what is known stands first in the first one."""
        self._draw()
        vectors = [self._within(solution[: len(self.variables)]) for solution in self._solutions]
        if first:  # to the last bit, which the fold may have cost
            vectors = [*self._known, *vectors[len(self._known) :]]
        return vectors

    def _draw_one(self, number: int) -> Candidate:
        if not number:
            self._in_generations = False
            self._begin()
        if not self._pool:
            vectors = self._population(first=not number)
            self._pool += zip(vectors, self._solutions, strict=True)
            if not number:
                self._pool.appendleft((self.variables.start, None))
        vector, solution = self._pool.popleft()
        self._given[number] = _Given(solution, self._updates, self._restarts)
        return self.candidate(vector)

    def _absorb(self, candidates: Mapping[int, Candidate], evaluations: list[Evaluation]) -> None:
        self._start_known = self._start_known or 0 in candidates
        given = [self._given.pop(number) for number in candidates]
        useful = [
            (one, float(evaluation.value))
            for one, evaluation in zip(given, evaluations, strict=False)  # of none, nothing is learnt
            if one.solution is not None and one.restarts == self._restarts
        ]
        self._update(
            [one.solution for one, _ in useful if one.solution is not None],
            [value for _, value in useful],
            late=[place for place, (one, _) in enumerate(useful) if one.updates < self._updates],
        )

    def _within(self, sample: Vector) -> Vector:
        if self.config.bounds == "transform":
            return sample
        return self.variables.lower + np.abs(sample - self.variables.lower)

    def _tell(self, evaluations: list[Evaluation]) -> None:
        self._learn([float(evaluation.value) for evaluation in evaluations])

    def _draw(self) -> None:
        with warnings.catch_warnings(action="ignore"):
            self._solutions = self._strategy.ask()
        self._asked_since = True

    def _learn(self, values: list[float]) -> None:
        """Close a generation; resuming calls this with the same values in the same order."""
        ours = values if self._told else values[1:]
        self._told.append(values)
        ours, again = ours[: self.population], ours[self.population :]
        self._treat_noise(ours, again)
        self._update(self._solutions[: len(ours)], ours)

    def _update(self, solutions: list[Vector], values: list[float], *, late: Sequence[int] = ()) -> None:
        """Tell the strategy what solutions were worth; those that are ``late`` were drawn before it last learnt."""
        least = max(self._strategy.sp.weights.mu, min(self.population, 3))  # mu to recombine; pycma wants 3
        if len(values) < least:
            return
        if min(values) == max(values):
            self._flat += 1
            self._restart_if_stopped()
            return
        self._flat = 0
        if not self._asked_since:  # pycma is told once for every time that it was asked
            self._draw()
        with warnings.catch_warnings(action="ignore"):  # about generations that the budget cut short
            self._strategy.tell(solutions, values, check_points=list(late) or None)
            self._reasons = {word: REASONS.get(word, f"pycma's criterion {word}") for word in self._strategy.stop()}
        self._asked_since = False
        self._updates += 1
        self._pool.clear()
        self._look()  # not in info(): both stop() and the lazy axes change the strategy, so they run once, here
        self._restart_if_stopped()

    def _treat_noise(self, first: list[float], again: list[float]) -> None:
        """Choose the size of the next batch, where enough was judged twice to measure noise."""
        if len(again) < judged_again(self.population):
            return
        self._noise = rank_changes(first, again)
        assert self.config.batch is not None, "nothing is judged twice without batches"
        self._size = next_size(self._size, self._noise, least=self.config.batch, most=self._most)
        self._info |= self._batch_info()

    def _batch_info(self) -> dict[str, float]:
        if self.config.batch is None:
            return {}
        return {"batch": float(self._size)} | ({} if self._noise is None else {"noise": self._noise})

    def _restart_if_stopped(self) -> None:
        """Begin again with twice the population, where there is a reason to stop and a restart left."""
        reasons = self.stop()
        if not reasons or self._restarts == self.config.restarts:
            return
        self._restarts += 1
        log.info("cma starts again with a population of %d: %s", self.population, "; ".join(reasons.values()))
        self._new_strategy()

    def _look(self) -> None:
        """Note what `info` says."""
        deviations = np.asarray(self._strategy.stds, dtype=np.float64)
        axes = deviations if self.diagonal else np.asarray(self._strategy.D, dtype=np.float64)
        self._info = {
            "sigma": float(self._strategy.sigma),
            "axis_ratio": float(axes.max() / axes.min()),
            "std_min": float(deviations.min()),
            "std_max": float(deviations.max()),
        } | self._batch_info()
        if self.config.restarts:
            self._info |= {"restart": float(self._restarts), "population": float(self.population)}

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
