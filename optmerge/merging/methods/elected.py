"""Entries that one expert alone finds important (stages C and E; LED-Merging, Ma et al. 2025).

Per tensor, an expert elects what is among the largest in importance both for itself and for the base on its task. What
several experts elect is in conflict, and nobody's: it stays the base's. An importance of zero is never elected, however
large the share, for it says that no example has reached the entry.

    Elementwise(weights, transforms=(partial(Elected, densities=(0.1, 0.4)),), needs=("saliency", "base-saliency"))
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from optmerge.config.methods import Need
from optmerge.merging.methods.selection import Values, largest
from optmerge.merging.methods.trim import rounded
from optmerge.merging.methods.vectors import CHUNK, Chunk, TaskVectors


class Elected(TaskVectors):
    """Task vectors where their expert alone has elected, zero elsewhere.

    Args:
        vectors: Whose values are kept; not by rows.
        densities: Share of a tensor's entries that counts as important, one per expert.
    """

    def __init__(self, vectors: TaskVectors, *, densities: tuple[float, ...]) -> None:
        self.vectors = vectors
        self.models = vectors.models
        self.by_rows = vectors.by_rows
        self.densities = densities
        self._last: tuple[str, dict[str, torch.Tensor]] = ("", {})

    def chunks(self, expert: str, name: str) -> Iterator[Chunk]:
        """See `TaskVectors.chunks`."""
        own = self._own(name)[expert]
        for chunk in self.vectors.chunks(expert, name):
            chunk.values.mul_(own[chunk.box])
            yield chunk

    def _own(self, name: str) -> dict[str, torch.Tensor]:
        """Expert -> bool of the parameter's shape, disjoint; those of the last parameter are remembered."""
        last, own = self._last
        if last != name:
            experts = self.models.experts
            elected = [self._elect(expert, name, share) for expert, share in zip(experts, self.densities, strict=True)]
            votes = torch.zeros(self.models.base(name).shape, dtype=torch.int16)
            for mask in elected:
                votes += mask
            alone = votes == 1
            own = {expert: mask.logical_and_(alone) for expert, mask in zip(experts, elected, strict=True)}
            self._last = (name, own)
        return own

    def _elect(self, expert: str, name: str, density: float) -> torch.Tensor:
        needs: tuple[Need, Need] = ("saliency", "base-saliency")
        found = [self.models.statistic(need, expert, name) for need in needs]
        elected = torch.ones(self.models.base(name).shape, dtype=torch.bool)
        for saliency in found:
            elected &= False if saliency is None else most_important(saliency, density)
        return elected


def most_important(saliency: torch.Tensor, density: float) -> torch.Tensor:
    """Which round(density * size) entries are the largest, equal ones in flat order; none of them zero.

    Args:
        saliency: No entry below 0.
        density: 0 to 1.

    Returns:
        bool, in the shape of ``saliency``.
    """
    flat = saliency.reshape(-1)
    above, ties = largest([_Entries(flat.numpy())], flat.numel(), rounded(density, flat.numel()))[0]
    chosen = flat > max(above, 0.0)
    if ties and above > 0:
        chosen[(flat == above).nonzero().view(-1)[:ties]] = True
    return chosen.view(saliency.shape)


@dataclass(frozen=True, slots=True)
class _Entries:
    """A tensor, as `largest` reads it."""

    values: Values

    def chunks(self) -> Iterator[Values]:
        """See `Stream`."""
        return (self.values[begin : begin + CHUNK] for begin in range(0, len(self.values), CHUNK))

    def sample(self, stride: int) -> Values:
        """See `Stream`."""
        return self.values[::stride]
