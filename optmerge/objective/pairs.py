"""The terms ``similarity`` and ``overlap``: whether two directions share the same groups of tensors.

    Similarity(SimilarityConfig()).value(coefficients, geometry)

Low values give each part of the model to one direction. Only groups where both directions of a pair are searched count.
"""

from __future__ import annotations

from itertools import combinations
from typing import ClassVar

import torch
from torch import Tensor

from optmerge.errors import ConfigError
from optmerge.objective.coefficient import CoefficientTerm
from optmerge.objective.geometry import Geometry


class Similarity(CoefficientTerm):
    """Cosine of the angle between two directions' coefficients as vectors over groups, mean over pairs.

    DAM takes the cosine within every tensor and adds those up, which says nothing where a tensor has one coefficient;
    over all groups together it means something in every search space.
    """

    name: ClassVar[str] = "similarity"
    differentiable: ClassVar[bool] = True
    unit: ClassVar[str] = "cosine"
    paper: ClassVar[str] = "Arcee 2024, DAM"

    def value(self, coefficients: Tensor, geometry: Geometry) -> Tensor:
        """See `CoefficientTerm.value`.

        Raises:
            ConfigError: No two directions have a group in common.
        """
        cosines = [_cosine(a, b) for a, b in _pairs(coefficients, geometry, self)]
        return torch.stack(cosines).mean()


class Overlap(CoefficientTerm):
    """Sum over groups of min(|a|, |b|) of two directions' coefficients a and b, mean over pairs."""

    name: ClassVar[str] = "overlap"
    differentiable: ClassVar[bool] = True
    unit: ClassVar[str] = "coefficient"
    paper: ClassVar[str] = "Arcee 2024, DAM"

    def value(self, coefficients: Tensor, geometry: Geometry) -> Tensor:
        """See `CoefficientTerm.value`.

        Raises:
            ConfigError: No two directions have a group in common.
        """
        shared = [torch.minimum(a.abs(), b.abs()).sum() for a, b in _pairs(coefficients, geometry, self)]
        return torch.stack(shared).mean()


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """0 with slope 0 where one of them is zero, as a search that starts from an expert has it: no angle is there."""
    scale = a.norm() * b.norm()
    return a @ b / scale if scale > 0 else (a.sum() + b.sum()) * 0.0


def _pairs(coefficients: Tensor, geometry: Geometry, term: CoefficientTerm) -> list[tuple[Tensor, Tensor]]:
    """Every two directions' coefficients where both are searched."""
    free = geometry.free
    pairs = []
    for one, other in combinations(range(coefficients.shape[1]), 2):
        both = free[:, one] & free[:, other]
        if bool(both.any()):
            pairs.append((coefficients[both, one], coefficients[both, other]))
    if not pairs:
        raise ConfigError(
            f"objective: {term.name} compares the coefficients of two directions, and in this search space no two of "
            f"the {coefficients.shape[1]} directions are searched in one group. Take the term out, or search over more "
            "directions."
        )
    return pairs
