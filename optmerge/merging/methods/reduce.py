"""Reducers over elements (stage F): from one chunk per expert to one chunk of the merge.

The weighted mean, the disjoint mean and the linear solve of `gram_solve` are one formula, (sum A_i)^-1 sum A_i c_i,
with A a number, a number times a 0/1 mask, or a Gram matrix.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from optmerge.merging.methods.signs import elect


class Reducer(ABC):
    """Combines the experts' chunks of one parameter."""

    @abstractmethod
    def __call__(self, values: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        """Write the combination of ``values`` (one per expert, may be overwritten) into ``out``, all of one shape."""


@dataclass(frozen=True, slots=True)
class WeightedSum(Reducer):
    """sum_i w_i c_i, in the engine's order: acc = sum_i fl(w_i c_i)."""

    weights: tuple[float, ...]

    def __call__(self, values: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        """See `Reducer`."""
        torch.mul(values[0], self.weights[0], out=out)
        for value, weight in zip(values[1:], self.weights[1:], strict=True):
            out += value.mul_(weight)


@dataclass(frozen=True, slots=True)
class DisjointMean(Reducer):
    """The weighted mean, per entry, of the experts that agree with the elected sign (Yadav et al. 2023, step 3).

    A_i = w_i where expert i's entry has the elected sign, else 0. An entry on which nobody agrees is 0.

    Attributes:
        weights: w_i, 0 or more, not all 0.
        normalize: Divide by sum_i A_i; the sum alone otherwise.
        weighted_votes: mergekit's election: of the sign of sum_i w_i c_i, a tie being positive. The paper elects with
            the task vectors alone, and here a tie elects nobody.
        positive_ties: A tie elects +, as in mergekit, whether or not the weights have a vote.
        least_mass: The smallest number that is divided by.
    """

    weights: tuple[float, ...]
    normalize: bool = True
    weighted_votes: bool = False
    positive_ties: bool = False
    least_mass: float = 0.0

    def __call__(self, values: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        """See `Reducer`."""
        sign = torch.empty_like(out)
        if self.weighted_votes:
            self._weigh(values)
        elect(values, sign, zero_is_positive=self.weighted_votes or self.positive_ties)
        if not self.weighted_votes:
            self._weigh(values)
        mass, ones = torch.zeros_like(out) if self.normalize else out, torch.empty_like(out)
        out.zero_()
        for value, weight in zip(values, self.weights, strict=True):
            value.mul_(sign).relu_()  # what agrees is positive now, and the rest 0
            out += value
            if self.normalize:
                torch.sign(value, out=ones)
                mass += ones if weight == 1 else ones.mul_(weight)
        if self.normalize:
            smallest = min(weight for weight in self.weights if weight > 0)
            out /= mass.clamp_min_(max(smallest, self.least_mass))  # 0 / 0 is 0
        out *= sign

    def _weigh(self, values: Sequence[torch.Tensor]) -> None:
        for value, weight in zip(values, self.weights, strict=True):
            if weight != 1:
                value *= weight
