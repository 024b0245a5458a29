"""Natural niches (M2N2): an archive of merges that compete for examples, crossed at split points.

In: a cost per fit example and candidate. Out: first the seeds (the start, and each direction alone), then one child a
generation, a mixture of two individuals of the archive.

    driver = NaturalNichesDriver(NaturalNichesConfig(), variables, seed=seed, fit_sizes={"topic": 180}, budget=300)

Abrantes, Lange & Tang, Competition and Attraction Improve Model Fusion, GECCO 2025, arXiv 2508.16204. There an
individual is a model's weights, and a child's segments are linear combinations of its parents'. Here it is the vector
of coefficients, and segments end where tensor groups do, so every child is a recipe and is exported exactly.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

import numpy as np
import numpy.typing as npt

from optmerge.config.natural_niches import NaturalNichesConfig
from optmerge.drivers.base import Driver
from optmerge.drivers.niche_archive import Archive, Scores
from optmerge.drivers.state import State
from optmerge.drivers.variables import Variables
from optmerge.records import OBJECTIVE, Candidate, Evaluation, Need, Vector

_NEEDS: frozenset[Need] = frozenset({"value", "per_example"})
_SLICE = re.compile(r"\[\d+\]$")
_PARALLEL = 1e-6  # sine of the angle below which slerp is lerp


class NaturalNichesDriver(Driver):
    """M2N2: competition for examples, attraction between parents, split points and mixing ratios.

    A generation draws parent A by roulette on fitness and parent B by roulette on what it has that A lacks
    (`optmerge.drivers.niche_archive`), a split point k among the groups and a ratio w, both uniform. The child is
    slerp(A, B, w) before k and slerp(A, B, 1 - w) from k on, plus Gaussian noise where ``mutation`` is not 0, within
    bounds. Of the archive with the child, the least fit leaves.

    An example's score is 1 minus its cost, cut to [0, 1]: 1 where the label is hit or the expert matched, 0 where it
    is as bad as the base is on average (`normalise: base`). All tasks have the same capacity, however many examples
    they have. Where nobody gives costs per example, the value is the one resource: score = 1 / (1 + exp(value)). An
    evaluation without costs among others that have them has failed, and does not enter the archive.

    Variables that take whole numbers go along a straight line instead of the arc and are rounded, and their noise is
    ``mutation`` times the width of their range; they have no part in the angle.

    The angle of `slerp` is that of the two vectors of coefficients: the angle of the merged task vectors where those
    of the experts have equal lengths and are orthogonal, which they nearly are.

    All that is random in a generation comes from the seed and the generation's number, so the state has no generator.

    >>> import numpy as np
    >>> names = ("layer.0/a", "layer.0/b", "layer.1/a", "layer.1/b")
    >>> variables = Variables(names, np.zeros(4), np.ones(4), np.full(4, 0.3))
    >>> seed = np.random.SeedSequence(0)
    >>> driver = NaturalNichesDriver(NaturalNichesConfig(), variables, seed=seed, fit_sizes={"t": 2}, budget=9)
    >>> seeds = driver.ask()
    >>> [candidate.vector.tolist() for candidate in seeds]
    [[0.3, 0.3, 0.3, 0.3], [1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]]
    >>> costs = ([0.5, 0.5], [0.0, 1.0], [1.0, 0.0])
    >>> driver.tell(seeds, [Evaluation(0.5, per_example={"t": {"objective": np.array(cost)}}) for cost in costs])
    >>> len(driver.ask())
    1
    """

    name: ClassVar[str] = "natural-niches"
    takes_integers: ClassVar[bool] = True
    config: NaturalNichesConfig

    def _set_up(self) -> None:
        config, variables = self.config, self.variables
        self._groups = group_numbers(variables.names)
        self._whole = np.zeros(len(variables), dtype=np.bool_) if variables.integer is None else variables.integer
        self._widths = np.where(self._whole, variables.upper - variables.lower, 1.0)  # of a unit of mutation
        known = variables.known[: config.known]
        self._seeds = _distinct([variables.start, *one_hots(variables), *known])
        self._archive = Archive(config.archive, config.alpha)
        self._seeded = 0  # how many seeds were scored

    @property
    def overlaps(self) -> bool:  # noqa: D102 - as the base class says
        return True

    def stop(self) -> dict[str, str]:
        """``converged`` when all individuals are the same and nothing mutates."""
        if self.config.mutation or self._seeded < len(self._seeds) or not self._archive.uniform():
            return {}
        return {"converged": "all individuals of the archive are the same, so no child can be another"}

    def info(self) -> dict[str, float]:
        """``archive`` (individuals), ``coverage`` (what they score jointly) and the archive's ``best`` value."""
        archive = self._archive
        best = {"best": min(archive.values)} if len(archive) else {}
        return {"archive": float(len(archive)), "coverage": archive.coverage()} | best

    def _ask(self) -> list[Candidate]:
        if self._seeded < len(self._seeds):
            return [self.candidate(vector, needs=_NEEDS) for vector in self._seeds[self._seeded :]]
        return [self.candidate(self._child(self.generation), needs=_NEEDS)]

    def _draw_one(self, number: int) -> Candidate:
        """The seeds first, then children: of any two seeds as long as nobody is in the archive."""
        vector = self._seeds[number] if number < len(self._seeds) else self._child(number)
        return self.candidate(vector, needs=_NEEDS)

    def _tell(self, evaluations: list[Evaluation]) -> None:
        assert self._open is not None, "tell closes an open generation"
        if self._seeded < len(self._seeds):
            # seeds that the budget cut off come next; if none can be scored, they are tried again or let go
            self._seeded += len(evaluations) or (len(self._seeds) if len(self._archive) else 0)
        self._enter(self._open, evaluations)

    def _absorb(self, candidates: Mapping[int, Candidate], evaluations: list[Evaluation]) -> None:
        self._seeded += sum(number < len(self._seeds) for number in candidates)
        self._enter(list(candidates.values()), evaluations)

    def _enter(self, candidates: Sequence[Candidate], evaluations: Sequence[Evaluation]) -> None:
        """The first candidates that have evaluations enter the archive."""
        if not evaluations:
            return
        scored = [costs_of(evaluation) for evaluation in evaluations]
        by_value = all(costs is None for costs in scored) if not len(self._archive) else self._by_value
        for candidate, evaluation, costs in zip(candidates, evaluations, scored, strict=False):
            if by_value:
                scores, weights = np.array([0.5 * (1.0 - math.tanh(0.5 * evaluation.value))]), np.ones(1)
            elif costs is None:
                continue
            else:
                scores, weights = _scores(costs), _capacities(costs)
            self._archive.insert(candidate.vector, scores, value=evaluation.value, weights=weights)

    @property
    def _by_value(self) -> bool:
        """Whether the archive's one resource is the value."""
        return len(self._archive.weights) == 1

    def _child(self, number: int) -> Vector:
        """Of two of the archive; ``number`` says which random numbers it gets."""
        config = self.config
        spawned = (*self.seed.spawn_key, number)
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(self.seed.entropy, spawn_key=spawned)))
        parents = self._parents(generator)
        split = int(generator.integers(self._groups[-1] + 1)) if config.split else 0
        ratio = float(generator.random())
        child = np.where(self._groups < split, self._between(*parents, ratio), self._between(*parents, 1.0 - ratio))
        if config.mutation:
            child = child + config.mutation * generator.standard_normal(len(child)) * self._widths
        return self.variables.project(child)

    def _parents(self, generator: np.random.Generator) -> tuple[Vector, Vector]:
        archive = self._archive
        if not len(archive):  # what is out is all there is
            chosen = generator.integers(len(self._seeds), size=2)
            return self._seeds[chosen[0]], self._seeds[chosen[1]]
        fitness = archive.fitness()
        first = _roulette(fitness, generator)
        wanted = archive.attraction(first) if self.config.attraction else fitness
        if not wanted.any():  # nobody has anything that A lacks
            wanted = fitness
        return archive.vectors[first], archive.vectors[_roulette(wanted, generator)]

    def _between(self, first: Vector, second: Vector, ratio: float) -> Vector:
        """`slerp` of what is continuous, and the straight line of what is not."""
        if not self._whole.any():
            return slerp(first, second, ratio)
        arc = slerp(np.where(self._whole, 0.0, first), np.where(self._whole, 0.0, second), ratio)
        mixed: Vector = np.where(self._whole, (1.0 - ratio) * first + ratio * second, arc)
        return mixed

    def _state(self) -> State:
        archive = self._archive
        return {
            "seeded": self._seeded,
            "vectors": np.array(archive.vectors, dtype=np.float64).reshape(len(archive), len(self.variables)),
            "scores": archive.scores,
            "values": list(archive.values),
            "weights": archive.weights,
        }

    def _load(self, state: State) -> None:
        self._seeded = cast(int, state["seeded"])
        self._archive.restore(
            cast(Scores, state["vectors"]),
            cast(Scores, state["scores"]),
            cast("list[float]", state["values"]),
            cast(Scores, state["weights"]),
        )


def slerp(first: Vector, second: Vector, ratio: float) -> Vector:
    """From ``first`` (ratio 0) to ``second`` (1) along the arc between them (Shoemake 1985).

    With Omega the angle between the two: (sin((1 - v) Omega) first + sin(v Omega) second) / sin(Omega), and the
    straight line where one of them is 0 or sin(Omega) is below 1e-6.

    >>> import numpy as np
    >>> slerp(np.array([2.0, 0.0]), np.array([0.0, 2.0]), 0.5).round(6).tolist()
    [1.414214, 1.414214]
    """
    lengths = math.sqrt(float(first @ first)) * math.sqrt(float(second @ second))
    angle = math.acos(max(-1.0, min(1.0, float(first @ second) / lengths))) if lengths else 0.0
    sine = math.sin(angle)
    if sine < _PARALLEL:
        mixed: Vector = (1.0 - ratio) * first + ratio * second
        return mixed
    arc: Vector = (math.sin((1.0 - ratio) * angle) * first + math.sin(ratio * angle) * second) / sine
    return arc


def group_numbers(names: Sequence[str]) -> npt.NDArray[np.int64]:
    """Each variable's tensor group, numbered in the order in which they come; slices belong to their tensor.

    >>> group_numbers(["up/a", "up/b", "down[0]/a", "down[1]/a", "x"]).tolist()
    [0, 0, 1, 1, 2]
    """
    seen: dict[str, int] = {}
    groups = (_SLICE.sub("", name.rpartition("/")[0]) if "/" in name else name for name in names)
    return np.array([seen.setdefault(group, len(seen)) for group in groups], dtype=np.int64)


def one_hots(variables: Variables) -> list[Vector]:
    """Each direction alone: 1 where a variable's name ends in it, 0 elsewhere, within bounds.

    A variable called otherwise than "group/direction" (one that directions share) stays at the start.
    """
    ends = np.array([name.rpartition("/")[2] if "/" in name else "" for name in variables.names])
    return [
        variables.project(np.where(ends == "", variables.start, ends == direction))
        for direction in dict.fromkeys(ends.tolist())
        if direction
    ]


def costs_of(evaluation: Evaluation) -> list[Scores] | None:
    """Every task's costs by example, lower is better; None where nobody gave them."""
    costs = [arrays[OBJECTIVE] for arrays in (evaluation.per_example or {}).values() if OBJECTIVE in arrays]
    return costs or None


def _scores(costs: list[Scores]) -> Scores:
    """1 minus the cost within [0, 1]; 0 for a cost that is not a number."""
    scores: Scores = np.clip(1.0 - np.nan_to_num(np.concatenate(costs), nan=math.inf), 0.0, 1.0)
    return scores


def _capacities(costs: list[Scores]) -> Scores:
    """Of every example: N / (T n_t), so that all T tasks are worth the same; 1 where they have as many examples."""
    total = sum(map(len, costs))
    weights: Scores = np.concatenate([np.full(len(task), total / (len(costs) * len(task))) for task in costs])
    return weights


def _roulette(weights: Scores, generator: np.random.Generator) -> int:
    """An index with a probability in proportion to its weight; any, where all weights are 0."""
    if not weights.any():
        return int(generator.integers(len(weights)))
    ends = np.cumsum(weights)
    drawn = np.searchsorted(ends, generator.random() * ends[-1], side="right")
    return min(int(drawn), int(np.flatnonzero(weights)[-1]))


def _distinct(vectors: Sequence[Vector]) -> list[Vector]:
    """Without those that stand there already, bit for bit."""
    return list({vector.tobytes(): vector for vector in vectors}.values())
