"""Task vectors weighed by their squared norms (stage E): MetaGPT's coefficients, and VaRM's.

    vectors = EnergyShared(RawVectors(models), scope="model")

lambda_i = |tau_i|^2 / sum_j |tau_j|^2, with the norms of whole task vectors (Zhou et al. 2024, "MetaGPT")
or of one parameter at a time (Wan et al. 2024, "FuseChat", variation ratio merging). Squares are summed in fp64.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import torch

from optmerge.merging.methods.vectors import Chunk, TaskVectors
from optmerge.records import Progress


def energy(parts: Iterable[torch.Tensor]) -> float:
    """The sum of squares of some tensors."""
    return sum(float(torch.linalg.vector_norm(part, dtype=torch.float64)) ** 2 for part in parts)


def shares(energies: Sequence[float]) -> tuple[float, ...]:
    """Each one's part of the sum, or equal parts if it is 0."""
    total = sum(energies)
    return tuple(value / total for value in energies) if total else (1 / len(energies),) * len(energies)


class EnergyShared(TaskVectors):
    """Each task vector times its share of the squared norms.

    Args:
        vectors: What is weighed.
        scope: ``model`` = one share per expert, by whole task vectors; ``tensor`` = one for every parameter.
    """

    def __init__(self, vectors: TaskVectors, *, scope: Literal["model", "tensor"]) -> None:
        self.vectors = vectors
        self.models = vectors.models
        self.by_rows = vectors.by_rows
        self.scope = scope
        self._shares: dict[str | None, dict[str, float]] = {}  # by parameter, or under None of the whole model

    def prepare(self, progress: Progress | None = None) -> None:
        """See `TaskVectors.prepare`: the norms of whole task vectors, read once."""
        if self.scope == "tensor" or None in self._shares:
            return
        energies = []
        for done, expert in enumerate(self.models.experts):
            energies.append(sum(self._energy(expert, name) for name in self.models.names))
            if progress:
                progress("norms", done + 1, len(self.models.experts))
        self._shares[None] = dict(zip(self.models.experts, shares(energies), strict=True))

    def chunks(self, expert: str, name: str) -> Iterator[Chunk]:
        """See `TaskVectors.chunks`."""
        share = self._share(expert, name)
        for chunk in self.vectors.chunks(expert, name):
            yield chunk._replace(values=chunk.values.mul_(share))

    def _share(self, expert: str, name: str) -> float:
        if self.scope == "model":
            self.prepare()
            return self._shares[None][expert]
        if name not in self._shares:
            experts = self.models.experts
            energies = [self._energy(other, name) for other in experts]
            self._shares[name] = dict(zip(experts, shares(energies), strict=True))
        return self._shares[name][expert]

    def _energy(self, expert: str, name: str) -> float:
        return energy(chunk.values for chunk in self.vectors.chunks(expert, name))
