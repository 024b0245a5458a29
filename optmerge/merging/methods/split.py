"""TIES before its mean: what each expert keeps of its task vector once signs are elected (AdaMerging++).

    method = TiesSplit(weights, transforms=(trim,))
    parts = method.expert_deltas(models, name)      # trimmed, zero where an expert disagrees with the elected sign

Yang et al. 2024 (AdaMerging, section 3) learn one coefficient for each of these parts, where TIES takes their mean.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from optmerge.merging.methods.base import Models
from optmerge.merging.methods.elementwise import Elementwise, Transform, empty_delta
from optmerge.merging.methods.reduce import AgreeingSum
from optmerge.merging.methods.signs import elect, keep_agreeing
from optmerge.merging.methods.vectors import Chunk


class TiesSplit(Elementwise):
    """The weighted sum of the transformed task vectors where each agrees with the elected sign.

    The election does not depend on the weights, so the method is linear in them. A tie of signs elects nobody.

    Args:
        weights: One per expert.
        transforms: Applied to each task vector before the election.
        by_rows: A transform needs whole rows.
    """

    def __init__(self, weights: tuple[float, ...], *, transforms: tuple[Transform, ...], by_rows: bool = False) -> None:
        super().__init__(weights, transforms=transforms, reducer=AgreeingSum(weights), by_rows=by_rows)
        self.linear = True

    def expert_deltas(self, models: Models, name: str) -> list[torch.Tensor]:
        """See `Method.expert_deltas`; one pass over all experts together."""
        vectors = self.vectors(models)
        streams: list[Iterator[Chunk]] = [vectors.chunks(expert, name) for expert in models.experts]
        results = [empty_delta(vectors, name) for _ in models.experts]
        for chunks in zip(*streams, strict=True):
            values = [chunk.values for chunk in chunks]
            keep_agreeing(values, elect(values, torch.empty_like(values[0])))
            for (_, view), chunk in zip(results, chunks, strict=True):
                view[chunk.box] = chunk.values
        return [delta for delta, _ in results]
