"""TIES before its mean: what each expert keeps of its task vector once signs are elected (AdaMerging++).

    method = TiesSplit(weights, transforms=(trim,))
    parts = method.expert_deltas(models, name)      # trimmed, zero where an expert disagrees with the elected sign

Yang et al. 2024 (AdaMerging, section 3) learn one coefficient for each of these parts, where TIES takes their mean.
With `agreeing_shares` in the place of `agreeing` each part is divided by how many agree, so that the parts add up to
TIES' mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from optmerge.merging.methods.base import Models
from optmerge.merging.methods.elementwise import Elementwise, Transform, empty_delta
from optmerge.merging.methods.reduce import Reducer, WeightedSum
from optmerge.merging.methods.signs import elect, keep_agreeing
from optmerge.merging.methods.vectors import Chunk

Keep = Callable[[Sequence[torch.Tensor]], None]
"""Elects a sign, and leaves in one tensor per expert, in place, what it contributes."""


def agreeing(values: Sequence[torch.Tensor]) -> None:
    """Set to zero, in place, what does not have the elected sign."""
    keep_agreeing(values, elect(values, torch.empty_like(values[0])))


def agreeing_shares(values: Sequence[torch.Tensor]) -> None:
    """Likewise, and divide what is left of every entry by the number of experts that agree on it."""
    agreeing(values)
    count = torch.zeros_like(values[0])
    for value in values:
        count += value != 0
    count.clamp_min_(1.0)
    for value in values:
        value /= count


class TiesSplit(Elementwise):
    """The weighted sum of the transformed task vectors where each agrees with the elected sign.

    The election does not depend on the weights, so the method is linear in them. A tie of signs elects nobody.

    Args:
        weights: One per expert.
        transforms: Applied to each task vector before the election.
        by_rows: A transform needs whole rows.
        keep: What each contributes.
    """

    def __init__(
        self,
        weights: tuple[float, ...],
        *,
        transforms: tuple[Transform, ...] = (),
        by_rows: bool = False,
        keep: Keep = agreeing,
    ) -> None:
        super().__init__(weights, transforms=transforms, reducer=KeptSum(weights, keep), by_rows=by_rows)
        self.linear = True
        self.keep = keep

    def expert_deltas(self, models: Models, name: str) -> list[torch.Tensor]:
        """See `Method.expert_deltas`; one pass over all experts together."""
        vectors = self.vectors(models)
        streams: list[Iterator[Chunk]] = [vectors.chunks(expert, name) for expert in models.experts]
        results = [empty_delta(vectors, name) for _ in models.experts]
        for chunks in zip(*streams, strict=True):
            values = [chunk.values for chunk in chunks]
            self.keep(values)
            for (_, view), chunk in zip(results, chunks, strict=True):
                view[chunk.box] = chunk.values
        return [delta for delta, _ in results]


@dataclass(frozen=True, slots=True)
class KeptSum(Reducer):
    """sum_i w_i k_i, with k_i what is kept of expert i's entries; the weights have no vote (AdaMerging++)."""

    weights: tuple[float, ...]
    keep: Keep

    def __call__(self, values: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        """See `Reducer`."""
        self.keep(values)
        WeightedSum(self.weights)(values, out)
