"""How much noise changes the ranks of a generation, and how many examples it should therefore look at.

In: what candidates were worth, and what some of them were worth on other examples. Out: a batch size.

    measured = rank_changes(first, again)         # above 0: noise decides more of the order than it should
    size = next_size(size, measured, most=180)

Hansen, Niederberger, Guzzella & Koumoutsakos 2009, "A Method for Handling Uncertainty in Evolutionary Optimization With
an Application to Feedback Control of Combustion", IEEE Transactions on Evolutionary Computation 13 (UH-CMA-ES); there a
noisy function is evaluated for a longer time, here on more examples. Two things differ, because all candidates of a
generation see the same examples. What one batch costs more than the other moves no rank, so the mean difference is
taken out of the second values; and the candidates keep their first values, as a mean over two batches would compare
some with the others unfairly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from optmerge.records import Vector

THETA = 0.2  # the paper's: up to the theta/2-quantile of what pure chance would do, changes are accepted
GROWTH = 1.5  # of the evaluation time, the paper's alpha_t
AGAIN = 5  # of so many candidates one is judged twice, but two at least; the paper has at least a tenth


def judged_again(population: int) -> int:
    """How many of a population are judged on a second batch.

    >>> [judged_again(population) for population in (6, 13, 21)]
    [2, 2, 4]
    """
    return min(population, max(2, population // AGAIN))


def rank_changes(first: Sequence[float], again: Sequence[float]) -> float:
    """The paper's s: by how much the mean change of rank exceeds what is acceptable; negative where it does not.

    The last values of ``first`` belong to the candidates of ``again``. With L the 2 lambda values of both lists and
    rank_i, rank'_i where candidate i stands among them with its first and its second value,

        Delta_i = rank'_i - rank_i - sign(rank'_i - rank_i)
        s = mean_i(2 |Delta_i| - lim(rank'_i - [rank'_i > rank_i]) - lim(rank_i - [rank_i > rank'_i]))

    and lim(R) the THETA/2-quantile of |1 - R|, |2 - R|, ..., |2 lambda - 1 - R|.

    Args:
        first: Values of lambda candidates on the generation's batch; lower is better.
        again: Values of the last of them on another batch of the same size; at least two.

    >>> rank_changes([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [5.5, 6.5]) < 0  # another level and the same order
    True
    >>> rank_changes([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [9.0, 0.0]) > 0
    True
    """
    old, new = np.asarray(first, dtype=np.float64), np.asarray(again, dtype=np.float64)
    count, total = len(new), len(old)
    difference = new - old[-count:]
    # deviations from a mean of few are smaller than those from the true one
    centred = (difference - difference.mean()) * math.sqrt(count / (count - 1))
    second = np.concatenate([old[:-count], old[-count:] + centred])
    ranks = np.argsort(np.argsort(np.concatenate([old, second]), kind="stable"), kind="stable") + 1
    steps = np.arange(1, 2 * total)
    excess = 0.0
    for before, after in zip(ranks[total - count : total].tolist(), ranks[-count:].tolist(), strict=True):
        change = abs(after - before - np.sign(after - before))
        limits = [_limit(steps, after - (after > before)), _limit(steps, before - (before > after))]
        excess += 2.0 * change - sum(limits)
    return float(excess / count)


def _limit(steps: Vector | np.ndarray[tuple[int], np.dtype[np.int64]], rank: int) -> float:
    return float(np.quantile(np.abs(steps - rank), THETA / 2.0))


def next_size(size: int, measured: float, *, least: int, most: int) -> int:
    """Examples of the next generation's batch: half as many again where noise was too much, fewer where it was not.

    Args:
        size: Of this generation's batch, per task.
        measured: What `rank_changes` gave.
        least: The configured size.
        most: Of the largest task; with so many, every task is seen whole.

    >>> next_size(16, 0.4, least=16, most=180), next_size(150, 0.4, least=16, most=180)
    (24, 180)
    >>> next_size(24, -0.3, least=16, most=180), next_size(24, 0.0, least=16, most=180)
    (16, 24)
    """
    if measured > 0.0:
        return min(math.ceil(size * GROWTH), most)
    return max(math.floor(size / GROWTH), least) if measured < 0.0 else size


def draw_batches(
    sizes: Mapping[str, int], size: int, *, seed: np.random.SeedSequence, generation: int
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Two batches of a generation, without an example in common where a task has enough of them.

    They depend on the seed and the generation alone, so that a driver's state need not hold a generator.

    Args:
        sizes: Task -> examples of its fit split.
        size: Examples of each task; a task with fewer is seen whole.
        seed: Of the search; it is not changed.
        generation: Which one.

    Returns:
        Twice task -> positions in rising order.
    """
    own = np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, generation))
    generator = np.random.Generator(np.random.PCG64(own))
    order = {task: generator.permutation(count) for task, count in sizes.items()}
    return (
        {task: tuple(sorted(positions[:size].tolist())) for task, positions in order.items()},
        {task: tuple(sorted(positions[-size:].tolist())) for task, positions in order.items()},
    )
