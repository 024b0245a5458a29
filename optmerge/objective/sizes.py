"""The terms ``l1`` and ``l2``: how large the searched coefficients are.

    L1(L1Config()).value(coefficients, geometry)

Both are sums, as where they come from, so that the weight that suits them depends on how many coefficients there are:
the default is for the millions of a column-wise space. ``anchor-l1`` and ``anchor-l2`` are means and pull to the start
rather than to the base model.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from optmerge.objective.coefficient import CoefficientTerm
from optmerge.objective.geometry import Geometry


class L1(CoefficientTerm):
    """Sum of |c| over the searched coefficients c."""

    name: ClassVar[str] = "l1"
    differentiable: ClassVar[bool] = True
    unit: ClassVar[str] = "coefficient"
    paper: ClassVar[str] = "Arcee 2024, DAM"

    def value(self, coefficients: Tensor, geometry: Geometry) -> Tensor:
        """See `CoefficientTerm.value`."""
        return coefficients[geometry.free].abs().sum()


class L2(CoefficientTerm):
    """Euclidean norm of each direction's searched coefficients, summed over directions.

    DAM takes the norm of every tensor's coefficients and adds those up; over all tensors together, a norm says the same
    in every search space.
    """

    name: ClassVar[str] = "l2"
    differentiable: ClassVar[bool] = True
    unit: ClassVar[str] = "coefficient"
    paper: ClassVar[str] = "Arcee 2024, DAM"

    def value(self, coefficients: Tensor, geometry: Geometry) -> Tensor:
        """See `CoefficientTerm.value`."""
        squares = torch.where(geometry.free, coefficients, 0.0).square().sum(0)
        return torch.where(squares > 0, squares, 1.0).sqrt().where(squares > 0, 0.0).sum()  # slope 0 at 0
