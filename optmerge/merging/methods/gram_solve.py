"""The operator-weighted mean with Gram matrices (stage F; RegMean, Jin et al. 2023, equation 2).

W^T = (sum G_i)^-1 sum G_i W_i^T minimises sum_i of the mean squared distance between W x and W_i x over expert i's
inputs x. It is solved for the difference to the plain mean: directions that no input has (where the matrix to invert is
singular) then keep the mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

_SINGULAR = 1e-6  # pivot, of a matrix with a unit diagonal in fp64, that is rounding noise


def gram_mean(
    deltas: Sequence[torch.Tensor],
    grams: Sequence[torch.Tensor],
    weights: Sequence[float],
    *,
    shrink: float,
    ridge: float,
) -> torch.Tensor:
    """(sum w_i G_i)^-1 sum w_i G_i delta_i^T, transposed.

    Args:
        deltas: K task vectors, [d_out, d_in] each, fp32 or fp64.
        grams: K Gram matrices, [d_in, d_in] each: mean of x x^T. A factor common to all of them cancels.
        weights: w_i, 0 or more, not all 0.
        shrink: Off-diagonal entries are multiplied by it, 0 to 1 (the paper's alpha).
        ridge: Added to the diagonal of the sum, as a share of it, 0 or more: pulls towards the mean.

    Returns:
        [d_out, d_in] in the dtype of the deltas; solved in fp64, for a Gram matrix squares the condition number.
    """
    total = sum(weights)
    mean = torch.zeros_like(deltas[0], dtype=torch.float64)
    for delta, weight in zip(deltas, weights, strict=True):
        mean.add_(delta, alpha=weight / total)
    summed = torch.zeros_like(grams[0], dtype=torch.float64)
    target = torch.zeros_like(mean.mT)
    for delta, gram, weight in zip(deltas, grams, weights, strict=True):
        shrunk = shrunken(gram, shrink).mul_(weight)
        summed += shrunk
        target += shrunk @ (delta - mean).mT
    solved = _solve(summed, target, ridge)
    return (mean + solved.mT).to(deltas[0].dtype)


def shrunken(gram: torch.Tensor, shrink: float) -> torch.Tensor:
    """A matrix [d, d] with its off-diagonal entries times ``shrink``, as a copy in fp64."""
    shrunk = gram.double() * shrink
    shrunk.diagonal().copy_(gram.diagonal())
    return shrunk


def _solve(gram: torch.Tensor, target: torch.Tensor, ridge: float) -> torch.Tensor:
    """gram^-1 target, with a unit diagonal first; inputs that are always zero have a solution of zero."""
    scale = gram.diagonal().clamp(min=0).rsqrt()
    scale.masked_fill_(scale.isinf(), 0)
    system = gram * scale * scale[:, None]
    system.diagonal().copy_(torch.where(scale > 0, 1.0 + ridge, 1.0))
    factor, failed = torch.linalg.cholesky_ex(system)
    right = target * scale[:, None]
    if failed or factor.diagonal().min() < _SINGULAR:
        # The smallest solution, which stays at the mean where no input points.
        solution: torch.Tensor = torch.linalg.pinv(system, hermitian=True) @ right
    else:
        solution = torch.cholesky_solve(right, factor)
    return solution * scale[:, None]
