"""Random drop by rank: the smaller an entry is within its row, the likelier it is dropped (stage C).

    vectors = RankDropped(RawVectors(models, by_rows=True), drop=0.3, epsilon=0.07, rescale="inverse", seed=0)

Deep et al. 2024, "DELLA-Merging" (MagPrune). An entry stays with the probability
q = 1 - drop + epsilon * (2 r - 1), r in [0, 1] being its rank by magnitude within the row, so that the mean of q over a
row is 1 - drop. The random numbers are those of `drop`: with epsilon 0 both drop the same entries.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from optmerge.merging.methods.drop import Dropped, Rescale
from optmerge.merging.methods.thinning import Odds
from optmerge.merging.methods.vectors import TaskVectors


class RankDropped(Dropped):
    """Task vectors of which a share is set to zero at random, small entries more often.

    Args:
        vectors: What entries are dropped from, by rows.
        drop: Mean probability that an entry is dropped, 0 to less than 1; at 0 nothing is, whatever ``epsilon``.
        epsilon: Half of the difference between the probabilities of a row's smallest and largest entry;
            drop - epsilon and drop + epsilon are at least 0 and less than 1. In a row of one entry it has no effect.
        rescale: ``inverse`` divides what is left by q, entry by entry, so the expectation stays (Deep et al. 2024);
            ``l1`` gives each parameter the L1 norm that it had, as mergekit does; ``none`` leaves it.
        seed: Of the masks.
    """

    def __init__(self, vectors: TaskVectors, *, drop: float, epsilon: float, rescale: Rescale, seed: int) -> None:
        super().__init__(vectors, drop=drop, rescale=rescale, seed=seed)
        self.epsilon = epsilon

    def _odds(self, size: int) -> Odds:
        """See `Dropped`: every rank has its own."""
        return _odds_by_rank(size, self.drop, self.epsilon, self.rescale == "inverse")


@lru_cache(maxsize=16)  # chunks of a few lengths of rows take turns
def _odds_by_rank(size: int, drop: float, epsilon: float, inverse: bool) -> Odds:
    stays = stay_probabilities(size, drop, epsilon)
    factors = 1 / stays if inverse else torch.ones_like(stays)
    below = ((1 - stays) * 2**32).round_()
    return Odds(below.numpy().astype(np.uint64), factors.numpy())


def stay_probabilities(size: int, drop: float, epsilon: float) -> torch.Tensor:
    """[size] fp64: the probability that an entry of a row stays, from the smallest entry to the largest."""
    if size == 1:
        return torch.tensor([1 - drop], dtype=torch.float64)
    ranks = torch.arange(size, dtype=torch.float64) / (size - 1)
    return 1 - drop + epsilon * (2 * ranks - 1)
