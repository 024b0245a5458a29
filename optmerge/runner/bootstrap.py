"""Is one recipe better than another on the same examples? A paired bootstrap, stratified by task.

    interval = paired_bootstrap({"topic": ours}, {"topic": theirs}, seed=0)
    interval.low > 0  # ours is better beyond the luck of the examples

Both sides are scored on the same examples, so only the differences are resampled: what makes an example hard for both
cancels. Every task keeps its number of examples, and counts the same in the mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]

_AT_ONCE = 1 << 22  # drawn positions held in memory at a time


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean difference with its percentile interval, in the unit of the scores.

    Attributes:
        difference: Mean over tasks of the mean over examples of a - b.
        low: Lower end of the interval.
        high: Upper end of the interval.
        per_task: Task -> (difference, low, high).
    """

    difference: float
    low: float
    high: float
    per_task: Mapping[str, tuple[float, float, float]]

    @property
    def decided(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    a: Mapping[str, Scores], b: Mapping[str, Scores], *, seed: int, level: float = 0.95, resamples: int = 2000
) -> Interval:
    """The mean difference a - b with a percentile bootstrap interval (Efron & Tibshirani 1993, section 13.3).

    Args:
        a: Task -> one score per example, float64[n].
        b: The same tasks, the same examples in the same order.
        seed: Of the generators, which are owned here, one per task; a task's interval does not depend on the others.
        level: Share of the resampled differences within the interval.
        resamples: How many resamples.

    Raises:
        ValueError: The two sides do not match, a task is empty, or a score is not finite.

    >>> import numpy as np
    >>> interval = paired_bootstrap({"t": np.ones(50)}, {"t": np.zeros(50)}, seed=0)
    >>> interval.difference, interval.low, interval.high
    (1.0, 1.0, 1.0)
    """
    differences = _differences(a, b)
    tail = 100 * (1 - level) / 2
    means: list[float] = []
    drawn: list[Scores] = []
    per_task: dict[str, tuple[float, float, float]] = {}
    for task, difference in differences.items():
        generator = np.random.default_rng([seed, _number(task)])
        resampled = np.concatenate(
            [difference[rows].mean(axis=1) for rows in _draws(generator, len(difference), resamples)]
        )
        low, high = np.percentile(resampled, [tail, 100 - tail])
        mean = float(difference.mean())
        per_task[task] = (mean, float(low), float(high))
        means.append(mean)
        drawn.append(resampled)
    low, high = np.percentile(np.mean(drawn, axis=0), [tail, 100 - tail])
    return Interval(float(np.mean(means)), float(low), float(high), per_task)


def _differences(a: Mapping[str, Scores], b: Mapping[str, Scores]) -> dict[str, Scores]:
    if not a or set(a) != set(b):
        raise ValueError(f"a paired comparison needs the same tasks on both sides, not {sorted(a)} and {sorted(b)}")
    result: dict[str, Scores] = {}
    for task in a:
        left, right = (np.asarray(side[task], dtype=np.float64) for side in (a, b))
        if left.ndim != 1 or left.shape != right.shape or not len(left):
            raise ValueError(f"task {task}: scores of shapes {left.shape} and {right.shape} cannot be paired")
        difference = left - right
        if not np.isfinite(difference).all():
            raise ValueError(f"task {task}: a score is not finite")
        result[task] = difference
    return result


def _draws(generator: np.random.Generator, size: int, resamples: int) -> Iterator[npt.NDArray[np.int64]]:
    """Positions int64[r, size], drawn with replacement, with r summing to ``resamples``."""
    step = max(1, _AT_ONCE // size)
    for done in range(0, resamples, step):
        yield generator.integers(size, size=(min(step, resamples - done), size))


def _number(task: str) -> int:
    return int.from_bytes(hashlib.sha256(task.encode()).digest()[:8], "little")
