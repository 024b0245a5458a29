"""The mean of the experts in which every entry counts by its Fisher information (stage F).

    sum_i w_i F_i tau_i / sum_i w_i F_i        (Matena and Raffel 2022, equation 4, as a difference to the base)

F_i is divided by its L2 norm over the whole model, so that experts with large gradients do not outvote the others, and
raised to a floor. Where no gradient reaches, the floor alone is left and the result is the plain mean.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from optmerge.config.methods import Need
from optmerge.merging.methods.base import Method, Models
from optmerge.merging.methods.elementwise import empty_delta
from optmerge.merging.methods.vectors import Chunk, RawVectors
from optmerge.records import Progress


class FisherMean(Method):
    """See the module.

    Args:
        weights: One per expert, 0 or more, not all 0.
        floor: Least F_i that counts, above 0.
        normalize: Divide each F_i by its norm.
    """

    needs: frozenset[Need] = frozenset({"fisher"})

    def __init__(self, weights: tuple[float, ...], *, floor: float, normalize: bool) -> None:
        super().__init__(weights)
        self.floor = floor
        self.normalize = normalize
        self._norms = (1.0,) * len(weights)

    def prepare(self, models: Models, progress: Progress | None = None) -> None:
        """Find the norms. See `Method.prepare`."""
        if not self.normalize:
            return
        norms = []
        for done, expert in enumerate(models.experts):
            square = 0.0
            for name in models.names:
                fisher = models.statistic("fisher", expert, name)
                if fisher is not None:
                    square += float(torch.linalg.vector_norm(fisher, dtype=torch.float64)) ** 2
            norms.append(square**0.5 or 1.0)
            if progress:
                progress("fisher norms", done + 1, len(models.experts))
        self._norms = tuple(norms)

    def delta(self, models: Models, name: str) -> torch.Tensor:
        """See `Method.delta`."""
        fishers = [models.statistic("fisher", expert, name) for expert in models.experts]
        vectors = RawVectors(models)
        streams: list[Iterator[Chunk]] = [vectors.chunks(expert, name) for expert in models.experts]
        merged, view = empty_delta(vectors, name)
        for chunks in zip(*streams, strict=True):
            out = view[chunks[0].box].zero_()
            mass = torch.zeros_like(out)
            for chunk, fisher, norm, weight in zip(chunks, fishers, self._norms, self.weights, strict=True):
                share = torch.zeros_like(out) if fisher is None else fisher[chunk.box].to(out.dtype) / norm
                share.clamp_min_(self.floor).mul_(weight)
                mass += share
                out += chunk.values.mul_(share)
            out /= mass
        return merged
