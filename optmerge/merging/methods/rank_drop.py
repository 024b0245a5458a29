"""Random drop by rank: the smaller an entry is within its row, the likelier it is dropped (stage C).

    vectors = RankDropped(RawVectors(models, by_rows=True), drop=0.3, epsilon=0.07, rescale="inverse", seed=0)

Deep et al. 2024, "DELLA-Merging" (MagPrune). An entry stays with the probability
q = 1 - drop + epsilon * (2 r - 1), r in [0, 1] being its rank by magnitude within the row, so that the mean of q over a
row is 1 - drop. The random numbers are those of `drop`: with epsilon 0 both drop the same entries.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from optmerge.merging.methods.drop import Dropped, Rescale, Words
from optmerge.merging.methods.vectors import Chunk, TaskVectors


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
        self._stays = torch.empty(0, dtype=torch.float64)  # of the last length of a row

    def _kept(self, expert: str, name: str) -> Iterator[Chunk]:
        """See `Dropped`: every rank has a scale of its own, which is in the mask."""
        words = Words(self.seed, expert, name)
        for chunk in self.vectors.chunks(expert, name):
            chunk.values.mul_(self._mask(words, chunk))
            yield chunk

    def _mask(self, words: Words, chunk: Chunk) -> torch.Tensor:
        """See `Dropped`; fp32 or fp64, with 1/q where what stays is divided by it."""
        rows = chunk.values.view(-1, chunk.values.shape[-1] if chunk.values.ndim else 1)
        stays = self._stays
        if len(stays) != rows.shape[-1]:
            self._stays = stays = stay_probabilities(rows.shape[-1], self.drop, self.epsilon)
        below = ((1 - stays) * 2**32).round_()
        factors = (1 / stays if self.rescale == "inverse" else torch.ones_like(stays)).to(rows.dtype)
        order = rising_order(rows.abs())
        drawn = torch.from_numpy(words.slice(chunk.offset, rows.numel()).astype("f8")).view(rows.shape)
        by_rank = factors * (drawn.gather(-1, order) >= below)
        return torch.empty_like(rows).scatter_(-1, order, by_rank).view(chunk.values.shape)


def rising_order(magnitudes: torch.Tensor) -> torch.Tensor:
    """int64[rows, n]: the order of each row's entries by size, equal ones as they stand.

    Args:
        magnitudes: [rows, n], none negative.
    """
    if magnitudes.dtype != torch.float32:
        return magnitudes.sort(dim=-1, stable=True).indices
    # Bits of fp32 and position in one whole number: sorted as they are, in a quarter of the time of a stable order.
    keys = magnitudes.numpy().view("u4").astype("u8") << 32 | np.arange(magnitudes.shape[-1], dtype="u8")
    keys.sort(axis=-1)
    return torch.from_numpy((keys & 0xFFFFFFFF).astype("i8"))


def stay_probabilities(size: int, drop: float, epsilon: float) -> torch.Tensor:
    """[size] fp64: the probability that an entry of a row stays, from the smallest entry to the largest."""
    if size == 1:
        return torch.tensor([1 - drop], dtype=torch.float64)
    ranks = torch.arange(size, dtype=torch.float64) / (size - 1)
    return 1 - drop + epsilon * (2 * ranks - 1)
