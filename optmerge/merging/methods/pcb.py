"""Parameter competition balancing (stage E): every entry is weighed by its size and by its agreement with the others.

    method = Pcb((1.0,) * 3, density=0.05, clip=0.01, raw=False)
    method.prepare(models)
    delta = method.delta(models, name)

Du et al. 2024, "Parameter Competition Balancing for Model Merging", as the authors' code computes it. Per
expert i, with all quantiles over its whole task vector:

    A = |tau_i| clipped to its quantiles clip and 1 - clip;     c_i = sgn(tau_i) A
    n = (A - min A) / (max A - min A)                           between 0 and 1
    b_i = exp(T n^2) * sum_j tanh(s_i s_j),  s = sgn(tau) n     T experts; size times agreement
    a_i = b_i less its quantile 1 - density, 0 where below, over the largest

and the merge is sum_i w_i a_i c_i / sum_i a_i. So it is linear in the weights, which are not in the scores. The code's
other version has tanh(tau_i * sum_j tau_j) in the place of the sum (``raw``). The paper writes a softmax over the
entries for exp and tanh; the code, and so this, does not normalise over them.

What a pass over the model needs is one chunk of every expert: two passes find the clipping, two the scores' quantiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from optmerge.merging.methods.base import Models
from optmerge.merging.methods.quantiles import values_at_ranks
from optmerge.merging.methods.selection import Values
from optmerge.merging.methods.split import TiesSplit
from optmerge.merging.methods.trim import rounded
from optmerge.records import Progress


class Span(NamedTuple):
    """Two quantiles of one expert."""

    low: float
    high: float


class Pcb(TiesSplit):
    """PCB-Merging, in the authors' versions "ES" and raw. Every kind of tensor gets the same rule.

    Args:
        weights: One per expert (lambda_i).
        density: Share of each task vector's entries that has a score above 0, more than 0.
        clip: Share of the magnitudes that is clipped at each end, less than 0.5.
        raw: Agreement by the task vectors as they are.
    """

    def __init__(self, weights: tuple[float, ...], *, density: float, clip: float, raw: bool) -> None:
        super().__init__(weights, keep=self._balance)
        self.density = density
        self.clip = clip
        self.raw = raw
        self._clips: list[Span] = []
        self._cuts: list[Span] = []

    def prepare(self, models: Models, progress: Progress | None = None) -> None:
        """See `Method.prepare`: the quantiles over whole task vectors."""
        size = sum(models.base(name).numel() for name in models.names)
        if not size:
            return
        wide = any(models.base(name).dtype == torch.float64 for name in models.names)
        dtype = np.float64 if wide else np.float32
        clipped = min(rounded(self.clip, size), (size - 1) // 2)
        kept = min(rounded(self.density, size), size - 1)
        experts = len(models.experts)
        found = values_at_ranks(lambda: self._magnitudes(models), [[size - clipped, clipped + 1]] * experts, dtype)
        self._clips = [Span(*pair) for pair in found]
        if progress:
            progress("quantiles", 1, 2)
        found = values_at_ranks(lambda: self._all_scores(models), [[kept + 1, 1]] * experts, dtype)
        self._cuts = [Span(*pair) for pair in found]
        if progress:
            progress("quantiles", 2, 2)

    def _chunks(self, models: Models) -> Iterator[list[torch.Tensor]]:
        """Of every parameter, chunk by chunk, all task vectors."""
        vectors = self.vectors(models)
        for name in models.names:
            streams = [vectors.chunks(expert, name) for expert in models.experts]
            for chunks in zip(*streams, strict=True):
                yield [chunk.values.view(-1) for chunk in chunks]

    def _magnitudes(self, models: Models) -> Iterator[Sequence[Values]]:
        for values in self._chunks(models):
            yield [value.abs_().numpy() for value in values]

    def _all_scores(self, models: Models) -> Iterator[Sequence[Values]]:
        for values in self._chunks(models):
            yield [score.numpy() for score in self._scores(values)]

    def _scores(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """b_i / exp(T), which no number of experts makes overflow, one per expert.

        Args:
            values: One task vector's entries per expert, of one shape; they are clipped in place, to c_i.
        """
        experts = len(values)
        agreements = self._raw_agreements(values) if self.raw else None
        sizes = []
        for value, span in zip(values, self._clips, strict=True):
            sign = value.sign()
            size = value.abs_().clamp_(span.low, span.high)
            # All magnitudes are the same one where the span is empty, and then none is smaller than the largest.
            sizes.append((size - span.low) / (span.high - span.low) if span.high > span.low else size.sign())
            value.mul_(sign)
        if agreements is None:
            agreements = _agreements([size * value.sign() for size, value in zip(sizes, values, strict=True)])
        return [
            agreement.mul_(size.square_().sub_(1).mul_(experts).exp_())
            for agreement, size in zip(agreements, sizes, strict=True)
        ]

    @staticmethod
    def _raw_agreements(values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        total = torch.stack(list(values)).sum(dim=0)
        return [(value * total).tanh_() for value in values]

    def _balance(self, values: Sequence[torch.Tensor]) -> None:
        """In place, from each expert's task vector to a_i c_i / sum_j a_j."""
        scores = self._scores(values)
        total = torch.zeros_like(values[0])
        for score, cut in zip(scores, self._cuts, strict=True):
            if cut.high > cut.low:
                score.sub_(cut.low).relu_().div_(cut.high - cut.low)
            else:  # what is above the quantile is all equal to it: the largest are kept, and with the same weight
                score.copy_((score >= cut.high) & (score > 0))
            total += score
        total.masked_fill_(total == 0, 1.0)
        for value, score in zip(values, scores, strict=True):
            value.mul_(score).div_(total)


def _agreements(signed: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """sum_j tanh(s_i s_j) for every i; each pair's tanh is computed once."""
    sums = [(one * one).tanh_() for one in signed]
    for first in range(len(signed)):
        for second in range(first):
            pair = (signed[first] * signed[second]).tanh_()
            sums[first] += pair
            sums[second] += pair
    return sums
