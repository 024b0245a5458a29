"""Random drop with rescaling (stage C; Yu et al. 2024, "Language Models are Super Mario", section 3.2).

Whether an entry is dropped depends on the seed, the expert, the parameter's name and the entry's flat index, and on
nothing else: not on the order of tensors, on chunks, on threads or on a device, nor on how much is dropped (what is
dropped at .3 is dropped at .5 too). Philox (Salmon et al. 2011) counts instead of remembering.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from optmerge.merging.methods.thinning import Odds, Stays, Sums, Words, keep, new_sums, thin, totals
from optmerge.merging.methods.vectors import Chunk, TaskVectors

Rescale = Literal["inverse", "l1", "none"]


class Dropped(TaskVectors):
    """Task vectors of which a share is set to zero at random.

    Args:
        vectors: What entries are dropped from.
        drop: Probability that an entry is dropped, 0 to less than 1 (to a multiple of 2^-32).
        rescale: ``inverse`` multiplies what is left by 1 / (1 - drop), so the expectation stays (Yu et al. 2024);
            ``l1`` gives each parameter the L1 norm that it had, as mergekit does; ``none`` leaves it.
        seed: Of the masks.
    """

    def __init__(self, vectors: TaskVectors, *, drop: float, rescale: Rescale, seed: int) -> None:
        self.vectors = vectors
        self.models = vectors.models
        self.by_rows = vectors.by_rows
        self.drop = drop
        self.rescale = rescale
        self.seed = seed

    def chunks(self, expert: str, name: str) -> Iterator[Chunk]:
        """See `TaskVectors.chunks`."""
        if self.drop == 0:
            return self.vectors.chunks(expert, name)
        return self._to_norm(expert, name) if self.rescale == "l1" else self._kept(expert, name)

    def _kept(self, expert: str, name: str) -> Iterator[Chunk]:
        """What stays, each entry rescaled by what its probability says."""
        words = Words(self.seed, expert, name)
        for chunk in self.vectors.chunks(expert, name):
            self._thin(chunk, words)
            yield chunk

    def _to_norm(self, expert: str, name: str) -> Iterator[Chunk]:
        """What stays, rescaled to the L1 norm that the parameter had; a bit an entry remembers what that is."""
        words, sums = Words(self.seed, expert, name), new_sums()
        bits = []
        for chunk in self.vectors.chunks(expert, name):
            stays = np.empty(chunk.values.numel(), np.uint8)
            self._thin(chunk, words, stays=stays, sums=sums)
            bits.append(np.packbits(stays))
        before, after = totals(sums)
        scale = before / after if after else 1.0  # nothing is left: there is nothing to scale
        for chunk, packed in zip(self.vectors.chunks(expert, name), bits, strict=True):
            keep(chunk.values, np.unpackbits(packed, count=chunk.values.numel()), scale)
            yield chunk

    def _thin(self, chunk: Chunk, words: Words, *, stays: Stays | None = None, sums: Sums | None = None) -> None:
        odds = self._odds(chunk.values.shape[-1] if chunk.values.ndim else 1)
        thin(chunk.values, words, chunk.offset, odds, stays=stays, sums=sums)

    def _odds(self, size: int) -> Odds:
        """Those of a row of ``size`` entries: here the same for all."""
        scale = 1 / (1 - self.drop) if self.rescale == "inverse" else 1.0
        return Odds(np.array([round(self.drop * 2**32)], np.uint64), np.array([scale]))
