"""Select, calculate, erase: FuseChat's merge (stage E).

    method = Sce(3, density=0.1)
    delta = method.delta(models, name)

Wan et al. 2024, "FuseChat", within every parameter:

    S  the entries whose variance over the experts is largest: floor(density * those where it is not 0)
    C  w_i = mean of tau_i^2 over the selected entries / the sum of these means
    E  entries against the sign of sum_i tau_i do not count
       the merge is sum_i w_i tau_i / sum_i w_i over what is left

The paper merges selected entries only; its code selects for C, and merges all of them. Where the experts agree on every
entry of a parameter nothing varies, and nothing is left out.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from optmerge.merging.methods.base import Method, Models
from optmerge.merging.methods.elementwise import empty_delta
from optmerge.merging.methods.energy import energy, shares
from optmerge.merging.methods.reduce import DisjointMean
from optmerge.merging.methods.selection import KEEP_NONE, Threshold, largest
from optmerge.merging.methods.trim import Entries, kept
from optmerge.merging.methods.vectors import Chunk, Index, RawVectors, TaskVectors

Joint = Iterator[tuple[Index, list[torch.Tensor]]]
"""Boxes of a parameter, each with all task vectors' entries in it."""

_FLAT = 1e-6  # sum of mean squares below which mergekit takes equal shares; also the least that it divides by


class Variances(TaskVectors):
    """The variance (population) of the experts' task vectors, entry by entry; it belongs to no expert."""

    def __init__(self, vectors: TaskVectors) -> None:
        self.vectors = vectors
        self.models = vectors.models
        self.by_rows = vectors.by_rows

    def chunks(self, expert: str, name: str) -> Iterator[Chunk]:
        """See `TaskVectors.chunks`; ``expert`` is not looked at."""
        streams = [self.vectors.chunks(each, name) for each in self.models.experts]
        for chunks in zip(*streams, strict=True):
            # Differences to the first expert, so that where all agree the variance is 0 exactly.
            first, *rest = (chunk.values for chunk in chunks)
            mean = torch.zeros_like(first)
            for value in rest:
                mean += value.sub_(first)
            mean /= len(chunks)
            variance = mean.square()
            for value in rest:
                variance += value.sub_(mean).square_()
            yield chunks[0]._replace(values=variance.div_(len(chunks)))


class Sce(Method):
    """The merge of FuseChat. Every kind of tensor gets the same rule.

    Args:
        experts: How many.
        density: Share of the entries that vary that is selected, 0 to 1.
        everywhere: Whether selected entries alone are merged (the paper), or all of them (its code).
        mergekit: mergekit's rules: equal shares where the mean squares add up to less than 1e-6, a tie of signs elects
            +, and where nothing varies nothing is selected.
    """

    def __init__(self, experts: int, *, density: float, everywhere: bool = True, mergekit: bool = False) -> None:
        super().__init__((1.0,) * experts)
        self.density = density
        self.everywhere = everywhere
        self.mergekit = mergekit

    def delta(self, models: Models, name: str) -> torch.Tensor:
        """See `Method.delta`."""
        vectors = RawVectors(models)
        threshold = self._threshold(Variances(vectors), name)
        merged, view = empty_delta(vectors, name)
        energies = [0.0] * len(models.experts)
        for _, values in _selected(vectors, name, threshold):
            energies = [total + energy([value]) for total, value in zip(energies, values, strict=True)]
        reduce = DisjointMean(
            self._shares(energies, merged.numel()),
            positive_ties=self.mergekit,
            least_mass=_FLAT if self.mergekit else 0.0,
        )
        for box, values in _selected(vectors, name, threshold if self.everywhere else None):
            reduce(values, view[box])
        return merged

    def _threshold(self, variances: Variances, name: str) -> Threshold | None:
        """Which variances are selected; None where all entries are."""
        if self.density >= 1:
            return None
        size = variances.models.base(name).numel()
        varying = sum(int(chunk.values.count_nonzero()) for chunk in variances.chunks("", name))
        if not varying:
            return KEEP_NONE if self.mergekit else None
        # mergekit multiplies in fp32, which decides on the last entry
        share = np.float32(self.density) * np.float32(varying) if self.mergekit else self.density * varying
        return largest([Entries(variances, "", name)], size, int(share))[0]

    def _shares(self, energies: list[float], size: int) -> tuple[float, ...]:
        flat = self.mergekit and sum(energies) < _FLAT * size
        return shares([1.0] * len(energies) if flat else energies)


def _selected(vectors: TaskVectors, name: str, threshold: Threshold | None) -> Joint:
    """All task vectors of a parameter, with zeros where the threshold does not keep their variance."""
    streams = [vectors.chunks(expert, name) for expert in vectors.models.experts]
    masks = kept(Variances(vectors).chunks("", name), threshold) if threshold is not None else None
    for chunks in zip(*streams, strict=True):
        values = [chunk.values for chunk in chunks]
        if masks is not None:
            mask = next(masks).values != 0
            for value in values:
                value.mul_(mask)
        yield chunks[0].box, values
