"""Lists of different lengths in one flat tensor, and padded matrices of some of them.

    ids = Ragged([[5, 6, 7], [8]], torch.int32)
    ids.padded(torch.tensor([1, 0]), 0)      # [[8, 0, 0], [5, 6, 7]]

Padding is always on the right: attention masks hide it, positions start at 0, and a causal model's earlier tokens
cannot see it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Ragged:
    """n lists of numbers or truth values.

    Attributes:
        values: All lists, one after the other.
        lengths: int64[n].
    """

    def __init__(self, lists: Sequence[Sequence[int | bool]], dtype: torch.dtype) -> None:
        self.values = torch.tensor([value for values in lists for value in values], dtype=dtype)
        self.lengths = torch.tensor([len(values) for values in lists], dtype=torch.int64)
        self._starts = self.lengths.cumsum(0) - self.lengths

    def present(self, positions: Tensor) -> Tensor:
        """Which places of the padded matrix are values: bool[B, longest]."""
        lengths = self.lengths[positions]
        return torch.arange(int(lengths.max())) < lengths[:, None]

    def padded(self, positions: Tensor, fill: int) -> Tensor:
        """The lists at ``positions``, int64[B], as the rows of a matrix [B, longest], int64 or bool."""
        present = self.present(positions)
        place = (self._starts[positions][:, None] + torch.arange(present.shape[1])).clamp_(max=len(self.values) - 1)
        taken = self.values[place]
        return (taken if taken.dtype == torch.bool else taken.long()).masked_fill_(~present, fill)

    def joined(self, positions: Tensor) -> Tensor:
        """The lists at ``positions``, one after the other."""
        lengths = self.lengths[positions]
        within = torch.arange(int(lengths.sum())) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        return self.values[self._starts[positions].repeat_interleave(lengths) + within]
