"""Random drop by rank: the smaller an entry is within its row, the likelier it is dropped (stage C).

    vectors = RankDropped(RawVectors(models, by_rows=True), drop=0.3, epsilon=0.07, rescale="inverse", seed=0)

Deep et al. 2024, "DELLA-Merging", section 3.1 (MagPrune). An entry stays with the probability
q = 1 - drop + epsilon * (2 r - 1), r in [0, 1] being its rank by magnitude within the row, so that the mean of q over a
row is 1 - drop. The random numbers are those of `drop`: with epsilon 0 both drop the same entries.
"""

from __future__ import annotations

from collections.abc import Iterator

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

    def _scale(self, expert: str, name: str) -> float:
        """See `Dropped`: what all entries have in common, which is nothing where each has a scale of its own."""
        return 1.0 if self.rescale == "inverse" else super()._scale(expert, name)

    def _kept(self, expert: str, name: str, scale: float) -> Iterator[Chunk]:
        words = Words(self.seed, expert, name)
        of_rank = torch.empty(0, dtype=torch.float64)
        for chunk in self.vectors.chunks(expert, name):
            rows = chunk.values.view(-1, chunk.values.shape[-1] if chunk.values.ndim else 1)
            if len(of_rank) != rows.shape[-1]:
                of_rank = stay_probabilities(rows.shape[-1], self.drop, self.epsilon)
            stays = torch.empty(rows.shape, dtype=torch.float64)
            order = rows.abs().sort(dim=-1, stable=True).indices
            stays.scatter_(-1, order, of_rank.expand(rows.shape))
            drawn = torch.from_numpy(words.slice(chunk.offset, rows.numel()).astype("f8")).view(rows.shape)
            rows.mul_(drawn >= ((1 - stays) * 2**32).round_())
            if self.rescale == "inverse":
                rows.div_(stays)
            yield chunk._replace(values=chunk.values.mul_(scale)) if scale != 1 else chunk


def stay_probabilities(size: int, drop: float, epsilon: float) -> torch.Tensor:
    """[size] fp64: the probability that an entry of a row stays, from the smallest entry to the largest."""
    if size == 1:
        return torch.tensor([1 - drop], dtype=torch.float64)
    ranks = torch.arange(size, dtype=torch.float64) / (size - 1)
    return 1 - drop + epsilon * (2 * ranks - 1)
