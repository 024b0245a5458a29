"""Task vectors as the matrices that methods decompose: dense, or the two thin factors of a LoRA adapter.

matrices = task_matrices(models, name)                      # one per expert
u, sigma, vh = cut_svd(matrices[0], tolerance=1e-6)         # of factors the product is never made
dense(matrices[0])                                          # [m, n]
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from optmerge.merging.methods.base import Models, TensorKind, working_dtype
from optmerge.merging.methods.elementwise import gathered
from optmerge.merging.methods.vectors import RawVectors
from optmerge.models.lora_factors import LoraFactors

Matrix = torch.Tensor | LoraFactors
"""[..., m, n], fp32 or fp64."""


def as_matrices(tensor: torch.Tensor, kind: TensorKind) -> torch.Tensor:
    """[m, n], or [stack, m, n] for a stack; a convolution [out, in, ...] is seen as [out, in * ...]."""
    while tensor.ndim > 1 and tensor.shape[0] == 1:
        tensor = tensor[0]
    return tensor.flatten(1) if kind.structure == "convolution" else tensor


def task_matrices(models: Models, name: str) -> list[Matrix]:
    """Every expert's task vector of a parameter that is no vector, as `as_matrices` sees it.

    Returns:
        K matrices [..., m, n], in fp64 where the base is and else in fp32. Dense ones may be changed in place.
    """
    vectors, kind = RawVectors(models), models.kind(name)
    return [
        factors if (factors := _factors(models, expert, name)) else as_matrices(gathered(vectors, expert, name), kind)
        for expert in models.experts
    ]


def summed(matrices: Sequence[Matrix], weights: Sequence[float]) -> Matrix:
    """The weighted sum; of factors side by side, as long as they stay thin.

    sum_k w_k s_k b_k a_k = [w_1 s_1 b_1 ...] [a_1; ...].
    """
    factors = [matrix for matrix in matrices if isinstance(matrix, LoraFactors)]
    if len(factors) == len(matrices) and sum(each.b.shape[-1] for each in factors) < min(factors[0].shape[-2:]):
        b = torch.cat([each.b * (weight * each.scaling) for each, weight in zip(factors, weights, strict=True)], dim=-1)
        return LoraFactors(b, torch.cat([each.a for each in factors], dim=-2), 1.0)
    total = dense(matrices[0]) * weights[0]
    for matrix, weight in zip(matrices[1:], weights[1:], strict=True):
        total += dense(matrix) * weight
    return total


def dense(matrix: Matrix) -> torch.Tensor:
    """[..., m, n]: the matrix itself, or the product of its factors."""
    return matrix.product(matrix.b.dtype) if isinstance(matrix, LoraFactors) else matrix


def is_zero(matrix: Matrix) -> bool:
    """Whether there is nothing to decompose."""
    parts = (matrix.b, matrix.a) if isinstance(matrix, LoraFactors) else (matrix,)
    return any(not torch.count_nonzero(part) for part in parts)


def _factors(models: Models, expert: str, name: str) -> LoraFactors | None:
    """The factors of a matrix, or of a stack, without leading dimensions of size 1."""
    factors, structure = models.factors(expert, name), models.kind(name).structure
    if factors is None or structure not in ("matrix", "stack"):
        return None
    dtype = working_dtype(models.base(name))
    ones = (0,) * (factors.b.ndim - (2 if structure == "matrix" else 3))
    return LoraFactors(factors.b[ones].to(dtype), factors.a[ones].to(dtype), factors.scaling)
