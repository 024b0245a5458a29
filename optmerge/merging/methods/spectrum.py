"""Singular values of matrices and of stacks of them: the cut, the truncation (C), and the flat spectrum (stage G).

A matrix may be given as two thin factors, whose product is then never made.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from optmerge.merging.methods.matrices import Matrix
from optmerge.models.lora_factors import LoraFactors


class Svd(NamedTuple):
    """A thin SVD, [..., m, r], [..., r] and [..., r, n]; what was cut has zeros in all three."""

    u: torch.Tensor
    sigma: torch.Tensor
    vh: torch.Tensor


def thin_svd(matrix: Matrix) -> Svd:
    """The SVD of [..., m, n] with min(m, n) singular values, or as many as thin factors have ranks.

    With b = Q R and a^T = P S, the SVD of R S^T [r, r] is that of b a up to the rotations Q and P: O((m + n) r^2).
    """
    if not isinstance(matrix, LoraFactors):
        return Svd(*torch.linalg.svd(matrix, full_matrices=False))
    left, upper = torch.linalg.qr(matrix.b)
    right, lower = torch.linalg.qr(matrix.a.mT)
    u, sigma, vh = torch.linalg.svd((upper @ lower.mT) * matrix.scaling, full_matrices=False)
    return Svd(left @ u, sigma, vh @ right.mT)


def cut_svd(matrix: Matrix, *, tolerance: float) -> Svd:
    """The SVD without directions that are rounding noise, which would otherwise be arbitrary.

    Args:
        matrix: [..., m, n], fp32 or fp64; finite.
        tolerance: Singular values at or below this share of the largest are cut.
    """
    u, sigma, vh = thin_svd(matrix)
    keep = (sigma > tolerance * sigma[..., :1]).to(sigma.dtype)
    return Svd(u * keep.unsqueeze(-2), sigma * keep, vh * keep.unsqueeze(-1))


def polar(matrix: torch.Tensor, *, tolerance: float) -> torch.Tensor:
    """The nearest matrix with orthonormal rows or columns; on the row space only, where the rank is not full.

    Args:
        matrix: [..., m, n], fp32 or fp64; finite.
        tolerance: See `cut_svd`.

    Returns:
        [..., m, n]: U @ Vh. It is unique because of the cut.
    """
    u, _, vh = cut_svd(matrix, tolerance=tolerance)
    return u @ vh


def flatten_spectrum(matrix: Matrix, *, tolerance: float) -> torch.Tensor:
    """mean(sigma) * U @ Vh (Marczak et al. 2025, "No Task Left Behind", algorithm 1).

    Args:
        matrix: [..., m, n], fp32 or fp64; finite.
        tolerance: See `cut_svd`. The mean is over all min(m, n) values, as in the authors' code.

    Returns:
        [..., m, n]; zero where the matrix is zero.
    """
    u, sigma, vh = cut_svd(matrix, tolerance=tolerance)
    mean = sigma.sum(dim=-1, keepdim=True) / min(matrix.shape[-2:])
    return (u * mean.unsqueeze(-2)) @ vh


def truncate_spectrum(matrix: Matrix, *, share: float, tolerance: float) -> torch.Tensor:
    """The leading singular components, scaled up to the matrix's nuclear norm (Lee et al. 2025, "STAR", section 3).

    Args:
        matrix: [..., m, n], fp32 or fp64; finite.
        share: The fewest components are kept that reach this share of the sum of singular values, above 0 and up to 1.
        tolerance: See `cut_svd`.

    Returns:
        [..., m, n]; zero where the matrix is zero.
    """
    u, sigma, vh = cut_svd(matrix, tolerance=tolerance)
    reached = sigma.double().cumsum(dim=-1)
    total = reached[..., -1:]
    kept = sigma * (reached - sigma < share * total)  # those before it have not reached it
    scale = total / kept.sum(dim=-1, keepdim=True, dtype=torch.float64).clamp_min(torch.finfo(torch.float64).tiny)
    return (u * (kept * scale.to(sigma.dtype)).unsqueeze(-2)) @ vh
