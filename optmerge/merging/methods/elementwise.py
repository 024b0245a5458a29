"""Methods that treat every entry by itself: transforms, then a reducer, chunk by chunk.

Memory is one chunk per expert and the result, whatever the size of the parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from optmerge.config.methods import Need
from optmerge.merging.methods.base import Method, Models, working_dtype
from optmerge.merging.methods.reduce import Reducer, WeightedSum
from optmerge.merging.methods.vectors import Chunk, RawVectors, TaskVectors
from optmerge.records import Progress

Transform = Callable[[TaskVectors], TaskVectors]


class Elementwise(Method):
    """Transformed task vectors, reduced entry by entry. Every kind of tensor gets the same rule.

    Args:
        weights: One per expert.
        transforms: Applied to each task vector, in this order.
        reducer: Combines the experts; the weighted sum, which makes the method linear, if None.
        by_rows: A transform needs whole rows.
        needs: The statistics that the transforms take.
    """

    def __init__(
        self,
        weights: tuple[float, ...],
        *,
        transforms: tuple[Transform, ...] = (),
        reducer: Reducer | None = None,
        by_rows: bool = False,
        needs: tuple[Need, ...] = (),
    ) -> None:
        super().__init__(weights)
        self.transforms = transforms
        self.reducer = reducer or WeightedSum(weights)
        self.linear = reducer is None
        self.by_rows = by_rows
        self.needs = frozenset(needs)
        self._bound: tuple[Models, TaskVectors] | None = None

    def prepare(self, models: Models, progress: Progress | None = None) -> None:
        """See `Method.prepare`."""
        self.vectors(models).prepare(progress)

    def delta(self, models: Models, name: str) -> torch.Tensor:
        """See `Method.delta`."""
        vectors = self.vectors(models)
        streams: list[Iterator[Chunk]] = [vectors.chunks(expert, name) for expert in models.experts]
        merged, view = empty_delta(vectors, name)
        for chunks in zip(*streams, strict=True):
            self.reducer([chunk.values for chunk in chunks], view[chunks[0].box])
        return merged

    def expert_deltas(self, models: Models, name: str) -> list[torch.Tensor]:
        """See `Method.expert_deltas`."""
        if not self.linear:
            return super().expert_deltas(models, name)
        vectors = self.vectors(models)
        return [gathered(vectors, expert, name) for expert in models.experts]

    def vectors(self, models: Models) -> TaskVectors:
        """The transformed task vectors of some models; those of the last ones asked for are remembered."""
        if self._bound is None or self._bound[0] is not models:
            vectors: TaskVectors = RawVectors(models, by_rows=self.by_rows)
            for transform in self.transforms:
                vectors = transform(vectors)
            self._bound = (models, vectors)
        return self._bound[1]


def gathered(vectors: TaskVectors, expert: str, name: str) -> torch.Tensor:
    """One expert's task vector of a parameter, whole."""
    delta, view = empty_delta(vectors, name)
    for chunk in vectors.chunks(expert, name):
        view[chunk.box] = chunk.values
    return delta


def empty_delta(vectors: TaskVectors, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """An empty delta, and the view of it in which the chunks' indices hold."""
    base = vectors.models.base(name)
    result = torch.empty(base.shape, dtype=working_dtype(base))
    return result, vectors.oriented(result, name)
