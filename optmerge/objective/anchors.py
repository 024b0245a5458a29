"""The terms ``anchor-l1`` and ``anchor-l2``: how far the searched coefficients are from where the search began.

    AnchorL2(AnchorL2Config(scale="norms")).value(coefficients, geometry)

With few inputs, whatever optimises hard over-fits; an anchor makes every step away from a good start pay for itself.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from optmerge.config.objectives import AnchorL1Config, AnchorL2Config
from optmerge.objective.coefficient import CoefficientTerm
from optmerge.objective.geometry import Geometry


class AnchorL1(CoefficientTerm):
    """Sum of w |c - start| over the searched coefficients, divided by the sum of w.

    The weights w are the norms of the deltas that the coefficients multiply, or all 1: then it is the mean absolute
    distance, as in the paper.
    """

    name: ClassVar[str] = "anchor-l1"
    differentiable: ClassVar[bool] = True
    unit: ClassVar[str] = "coefficient"
    paper: ClassVar[str] = "Expert Merging, ICLR 2026, the regulariser R"

    config: AnchorL1Config

    def __init__(self, config: AnchorL1Config) -> None:
        super().__init__(config)

    def value(self, coefficients: Tensor, geometry: Geometry) -> Tensor:
        """See `CoefficientTerm.value`."""
        moved = (coefficients - geometry.start)[geometry.free].abs()
        return _weighted_mean(moved, _norms(geometry, self.config.scale))


class AnchorL2(CoefficientTerm):
    """Sum of w^2 (c - start)^2 over the searched coefficients, divided by the sum of w^2.

    The weights w are those of ``anchor-l1``. With norms, and deltas that are orthogonal to each other, it is the
    squared distance of the merged weights from those of the start, in units of all deltas' squared norms.
    """

    name: ClassVar[str] = "anchor-l2"
    differentiable: ClassVar[bool] = True
    unit: ClassVar[str] = "coefficient squared"
    paper: ClassVar[str] = "Li et al. 2018, Explicit Inductive Bias for Transfer Learning (L2-SP), in coefficients"

    config: AnchorL2Config

    def __init__(self, config: AnchorL2Config) -> None:
        super().__init__(config)

    def value(self, coefficients: Tensor, geometry: Geometry) -> Tensor:
        """See `CoefficientTerm.value`."""
        moved = (coefficients - geometry.start)[geometry.free].square()
        return _weighted_mean(moved, _norms(geometry, self.config.scale).square())


def _norms(geometry: Geometry, scale: str) -> Tensor:
    """A weight for every searched coefficient: fp64[n]."""
    if scale == "none":
        return torch.ones(int(geometry.free.sum()), dtype=torch.float64)
    return geometry.norms[geometry.free]  # measured when first asked for


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """0 where all weights are: coefficients that multiply nothing are nowhere far away."""
    return (weights * values).sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
