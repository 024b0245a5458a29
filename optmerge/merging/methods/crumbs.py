"""Crumbs: what is left of a task vector without its outliers and without its small entries (stage C).

    vectors = Crumbs(RawVectors(models, by_rows=True), density=0.15, outliers=0.006, scope="row")

Davari & Belilovsky 2024, "Model Breadcrumbs", by the rule of their code: of n entries (of a row, unless another scope
is chosen) the floor(outliers * n) largest are removed, then the floor(density * n) largest of what is left are kept.
Equal magnitudes rank in flat order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from optmerge.config.methods import Scope
from optmerge.merging.methods.trim import Trimmed, largest_of_rows
from optmerge.merging.methods.vectors import Chunk, TaskVectors
from optmerge.records import Progress

Ranks = Callable[[float, float, int], tuple[int, int]]
"""(density, outliers, n) -> how many of the largest are removed, and how many of them and of what is kept there are."""


def paper_ranks(density: float, outliers: float, size: int) -> tuple[int, int]:
    """Those of the paper's code, in which a scalar stays as it is."""
    if size == 1:
        return 0, 1
    removed = int(outliers * size)
    return removed, min(removed + int(density * size), size)


def mergekit_ranks(density: float, outliers: float, size: int) -> tuple[int, int]:
    """Those of mergekit: fewer outliers are removed where otherwise fewer entries than asked for would be kept."""
    kept = int(density * size)
    removed = min(int(outliers * size), size - kept)
    return removed, removed + kept


class Crumbs(TaskVectors):
    """Task vectors without their outliers and their small entries.

    Args:
        vectors: What is trimmed.
        density: Share of the entries that is kept, 0 to 1.
        outliers: Share of the entries that is removed as too large, 0 to less than 1.
        scope: As in `Trimmed`.
        ranks: How many of so many entries these are.
    """

    def __init__(
        self, vectors: TaskVectors, *, density: float, outliers: float, scope: Scope, ranks: Ranks = paper_ranks
    ) -> None:
        self.vectors = vectors
        self.models = vectors.models
        self.by_rows = vectors.by_rows
        self.scope = scope
        self._ranks = partial(ranks, density, outliers)
        self._reached = Trimmed(vectors, density=density, scope=scope, count=lambda _, size: self._ranks(size)[1])
        self._removed = Trimmed(vectors, density=outliers, scope=scope, count=lambda _, size: self._ranks(size)[0])

    def prepare(self, progress: Progress | None = None) -> None:
        """See `TaskVectors.prepare`: the thresholds of scope ``model``."""
        self._reached.prepare(progress)
        self._removed.prepare(progress)

    def chunks(self, expert: str, name: str) -> Iterator[Chunk]:
        """See `TaskVectors.chunks`."""
        if self.scope == "row":
            return self._rows(expert, name)
        return self._between(expert, name)

    def _between(self, expert: str, name: str) -> Iterator[Chunk]:
        """What is reached without what is removed, of which the one holds the other: the difference is exact."""
        streams = self._reached.chunks(expert, name), self._removed.chunks(expert, name)
        for reached, removed in zip(*streams, strict=True):
            yield reached._replace(values=reached.values.sub_(removed.values))

    def _rows(self, expert: str, name: str) -> Iterator[Chunk]:
        """One sort for both ends."""
        for chunk in self.vectors.chunks(expert, name):
            rows = chunk.values.view(-1, chunk.values.shape[-1] if chunk.values.ndim else 1)
            removed, reached = self._ranks(rows.shape[-1])
            outliers, crumbs = largest_of_rows(rows, removed, reached)
            np.copyto(rows.numpy(), 0.0, where=outliers | ~crumbs)
            yield chunk
