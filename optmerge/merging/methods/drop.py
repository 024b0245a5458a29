"""Random drop with rescaling (stage C; Yu et al. 2024, "Language Models are Super Mario", section 3.2).

Whether an entry is dropped depends on the seed, the expert, the parameter's name and the entry's flat index, and on
nothing else: not on the order of tensors, on chunks, on threads or on a device, nor on how much is dropped (what is
dropped at .3 is dropped at .5 too). Philox (Salmon et al. 2011) counts instead of remembering.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from optmerge.merging.methods.vectors import Chunk, TaskVectors

Rescale = Literal["inverse", "l1", "none"]

_BLOCK = 8  # 32-bit words that Philox makes per count


class Words:
    """The random 32-bit words of one expert's parameter, by flat index."""

    def __init__(self, seed: int, expert: str, name: str) -> None:
        digest = hashlib.sha256(json.dumps([seed, expert, name]).encode()).digest()
        self._key = int.from_bytes(digest[:16], "little")

    def slice(self, start: int, count: int) -> NDArray[np.uint32]:
        """[count] words, those of entries ``start`` to ``start + count``."""
        first, skip = divmod(start, _BLOCK)
        generator = np.random.Philox(key=self._key, counter=first)
        words = generator.random_raw((skip + count + 1) // 2).astype("<u8", copy=False).view("<u4")
        return words[skip : skip + count]


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
        scale = 1 / (1 - self.drop) if self.rescale == "inverse" else 1.0
        for chunk in self.vectors.chunks(expert, name):
            chunk.values.mul_(self._mask(words, chunk))
            yield chunk._replace(values=chunk.values.mul_(scale)) if scale != 1 else chunk

    def _to_norm(self, expert: str, name: str) -> Iterator[Chunk]:
        """What stays, rescaled to the L1 norm that the parameter had; a bit an entry remembers what that is."""
        words = Words(self.seed, expert, name)
        before = after = 0.0
        bits = []
        for chunk in self.vectors.chunks(expert, name):
            before += _l1(chunk.values)
            mask = self._mask(words, chunk)
            bits.append(np.packbits(mask.view(-1).numpy() != 0))
            after += _l1(chunk.values.mul_(mask))
        scale = before / after if after else 1.0  # nothing is left: there is nothing to scale
        for chunk, packed in zip(self.vectors.chunks(expert, name), bits, strict=True):
            stays = np.unpackbits(packed, count=chunk.values.numel())
            chunk.values.mul_(torch.from_numpy(stays).view(chunk.values.shape))
            yield chunk._replace(values=chunk.values.mul_(scale)) if scale != 1 else chunk

    def _mask(self, words: Words, chunk: Chunk) -> torch.Tensor:
        """By what a chunk's entries are multiplied, their common scale apart: bool[*box]."""
        kept = words.slice(chunk.offset, chunk.values.numel()) >= round(self.drop * 2**32)
        return torch.from_numpy(kept).view(chunk.values.shape)


def _l1(values: torch.Tensor) -> float:
    return float(values.abs().sum(dtype=torch.float64))
