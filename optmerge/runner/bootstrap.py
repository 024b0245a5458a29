"""How far a score, or the difference of two, is the luck of the examples: bootstraps, stratified by task.

    bootstrap({"topic": ours}, seed=0)                                         # the score's own interval
    interval = paired_bootstrap({"topic": ours}, {"topic": theirs}, seed=0)
    interval.low > 0  # ours is better beyond the luck of the examples

Where both sides are scored on the same examples, only the differences are resampled: what makes an example hard for
both cancels. Every task keeps its number of examples, and counts the same in the mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]
Arrays = Mapping[str, Mapping[str, Scores]]
Means = Mapping[str, Mapping[str, float]]

_AT_ONCE = 1 << 22  # drawn positions held in memory at a time


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its percentile interval, in the unit of the scores.

    Attributes:
        mean: Mean over tasks of the mean over examples, of a score or of a difference a - b.
        low: Lower end of the interval.
        high: Upper end of the interval.
        per_task: Task -> (mean, low, high).
    """

    mean: float
    low: float
    high: float
    per_task: Mapping[str, tuple[float, float, float]]

    @property
    def decided(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


def bootstrap(scores: Mapping[str, Scores], *, seed: int, level: float = 0.95, resamples: int = 2000) -> Interval:
    """The mean score with a percentile bootstrap interval (Efron & Tibshirani 1993, section 13.3).

    Args:
        scores: Task -> one score per example, float64[n].
        seed: Of the generators, which are owned here, one per task; a task's interval does not depend on the others.
        level: Share of the resampled means within the interval.
        resamples: How many resamples.

    Raises:
        ValueError: There is no task, one is empty, or a score is not finite.

    >>> interval = bootstrap({"t": np.full(50, 0.5)}, seed=0)
    >>> interval.mean, interval.low, interval.high
    (0.5, 0.5, 0.5)
    """
    if not scores:
        raise ValueError("a bootstrap needs at least one task")
    tail = 100 * (1 - level) / 2
    means: list[float] = []
    drawn: list[Scores] = []
    per_task: dict[str, tuple[float, float, float]] = {}
    for task, values in scores.items():
        values = np.asarray(values, dtype=np.float64)
        if values.ndim != 1 or not len(values):
            raise ValueError(f"task {task}: scores of shape {values.shape}; expected one per example")
        if not np.isfinite(values).all():
            raise ValueError(f"task {task}: a score is not finite")
        generator = np.random.default_rng([seed, _number(task)])
        resampled = np.concatenate([values[rows].mean(axis=1) for rows in _draws(generator, len(values), resamples)])
        low, high = np.percentile(resampled, [tail, 100 - tail])
        mean = float(values.mean())
        per_task[task] = (mean, float(low), float(high))
        means.append(mean)
        drawn.append(resampled)
    low, high = np.percentile(np.mean(drawn, axis=0), [tail, 100 - tail])
    return Interval(float(np.mean(means)), float(low), float(high), per_task)


def paired_bootstrap(
    a: Mapping[str, Scores], b: Mapping[str, Scores], *, seed: int, level: float = 0.95, resamples: int = 2000
) -> Interval:
    """The mean difference a - b with its interval; see `bootstrap`.

    Args:
        a: Task -> one score per example, float64[n].
        b: The same tasks, the same examples in the same order.
        seed: As of `bootstrap`.
        level: Share of the resampled differences within the interval.
        resamples: How many resamples.

    Raises:
        ValueError: The two sides do not match, a task is empty, or a score is not finite.

    >>> interval = paired_bootstrap({"t": np.ones(50)}, {"t": np.zeros(50)}, seed=0)
    >>> interval.mean, interval.low, interval.high
    (1.0, 1.0, 1.0)
    """
    if not a or set(a) != set(b):
        raise ValueError(f"a paired comparison needs the same tasks on both sides, not {sorted(a)} and {sorted(b)}")
    differences: dict[str, Scores] = {}
    for task in a:
        left, right = (np.asarray(side[task], dtype=np.float64) for side in (a, b))
        if left.ndim != 1 or left.shape != right.shape or not len(left):
            raise ValueError(f"task {task}: scores of shapes {left.shape} and {right.shape} cannot be paired")
        differences[task] = left - right
    return bootstrap(differences, seed=seed, level=level, resamples=resamples)


def objective_lead(
    value: Callable[[Means], float], a: Arrays, b: Arrays, *, seed: int, level: float = 0.95, resamples: int = 1000
) -> tuple[float, float, float]:
    """The difference b - a of two objective values with its interval: how far a leads, where lower is better.

    An objective is a function of its terms' means, so the examples are resampled and the function is taken anew.

    Args:
        value: Task -> term -> mean over examples; gives the objective's value.
        a: Task -> term -> float64[n], of the one that leads.
        b: The same for the other, on the same examples in the same order.
        seed: As of `bootstrap`.
        level: Share of the resampled differences within the interval.
        resamples: How many resamples.

    Returns:
        The difference, and the lower and upper end of its interval.

    >>> scores = {"t": {"loss": np.array([1.0, 2.0])}}
    >>> objective_lead(lambda means: means["t"]["loss"], scores, {"t": {"loss": np.array([2.0, 3.0])}}, seed=0)
    (1.0, 1.0, 1.0)
    """
    leads = []
    drawn: list[dict[str, dict[str, Scores]]] = [{}, {}]  # of each side, task -> term -> resampled means
    for task, terms in a.items():
        size = len(next(iter(terms.values())))
        generator = np.random.default_rng([seed, _number(task)])
        chunks = list(_draws(generator, size, resamples))
        for side, into in zip((a, b), drawn, strict=True):
            into[task] = {
                name: np.concatenate([values[rows].mean(axis=1) for rows in chunks])
                for name, values in side[task].items()
            }
    for number in range(resamples):
        first, second = (
            value({task: {name: float(means[number]) for name, means in terms.items()} for task, terms in side.items()})
            for side in drawn
        )
        leads.append(second - first)
    whole = [
        value({task: {name: float(scores.mean()) for name, scores in terms.items()} for task, terms in side.items()})
        for side in (a, b)
    ]
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(leads, [tail, 100 - tail])
    return whole[1] - whole[0], float(low), float(high)


def _draws(generator: np.random.Generator, size: int, resamples: int) -> Iterator[npt.NDArray[np.int64]]:
    """Positions int64[r, size], drawn with replacement, with r summing to ``resamples``."""
    step = max(1, _AT_ONCE // size)
    for done in range(0, resamples, step):
        yield generator.integers(size, size=(min(step, resamples - done), size))


def _number(task: str) -> int:
    return int.from_bytes(hashlib.sha256(task.encode()).digest()[:8], "little")
