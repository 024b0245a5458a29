"""The operator-weighted mean by conjugate gradients (stage F; MaTS, Tam et al. 2023, section 4).

    sum_i w_i H_i W G_i = sum_i w_i H_i W_i G_i

with G_i the Gram matrix of a layer's inputs and H_i that of the gradients by its outputs (K-FAC), or no H_i at all. Few
steps from a good start keep its value wherever the experts' matrices are too small to say otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from optmerge.merging.methods.gram_solve import shrunken

Operator = Callable[[torch.Tensor], torch.Tensor]


def kronecker_mean(
    deltas: Sequence[torch.Tensor],
    grams: Sequence[torch.Tensor],
    output_grams: Sequence[torch.Tensor] | None = None,
    *,
    weights: Sequence[float],
    start: float,
    iterations: int,
    tolerance: float,
    shrink: float,
) -> torch.Tensor:
    """The merged delta of a layer.

    Args:
        deltas: K task vectors, [d_out, d_in] each, fp32 or fp64.
        grams: K Gram matrices of the inputs, [d_in, d_in] each.
        output_grams: K of the gradients by the outputs, [d_out, d_out] each; None is the unit matrix.
        weights: w_i, 0 or more, not all 0.
        start: Times the sum of the weighted task vectors is where it starts.
        iterations: See `conjugate_gradient`.
        tolerance: See `conjugate_gradient`.
        shrink: Off-diagonal entries of all matrices are multiplied by it.

    Returns:
        [d_out, d_in] in the dtype of the deltas. Sums are in fp64, in which all matrices are held, once.
    """
    used = [index for index, weight in enumerate(weights) if weight > 0]
    inner = torch.stack([shrunken(grams[index], shrink).mul_(weights[index]) for index in used])
    tuned = torch.stack([deltas[index].double() for index in used])
    begin = torch.zeros_like(tuned[0])
    for delta, index in zip(tuned, used, strict=True):
        begin.add_(delta, alpha=start * weights[index])
    if output_grams is None:  # K products with one matrix are one with their sum
        operator: Operator = partial(torch.matmul, other=inner.sum(0))
        target = (tuned @ inner).sum(0)
    else:
        outer = torch.cat([shrunken(output_grams[index], shrink) for index in used], dim=1)
        operator = partial(_kronecker_sum, inner=inner, outer=outer)
        target = _kronecker_sum(tuned, inner, outer)
    del tuned  # what the steps do not need
    solved = conjugate_gradient(operator, target, begin, iterations=iterations, tolerance=tolerance)
    return solved.to(deltas[0].dtype)


def _kronecker_sum(matrices: torch.Tensor, inner: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
    """sum_i H_i X_i G_i in two products: the sum over i is a part of the second one's.

    Args:
        matrices: [K, d_out, d_in], or [d_out, d_in] where all X_i are the same.
        inner: [K, d_in, d_in], the G_i.
        outer: [d_out, K * d_out], the H_i side by side.
    """
    return outer @ torch.matmul(matrices, inner).flatten(0, 1)


def conjugate_gradient(
    operator: Operator, target: torch.Tensor, start: torch.Tensor, *, iterations: int, tolerance: float
) -> torch.Tensor:
    """Steps of conjugate gradients towards A x = b (Hestenes and Stiefel 1952); the start is left alone.

    Args:
        operator: x -> A x, symmetric and with no eigenvalue below 0; x of any shape.
        target: b.
        start: x_0. Where A is singular, its part in A's null space stays as it is.
        iterations: Most steps.
        tolerance: Stop when the residual's norm is this share of b's.
    """
    solution = start.clone()
    residual = target - operator(solution)
    direction = residual.clone()
    square = residual.square().sum()
    enough = tolerance**2 * target.square().sum()
    for _ in range(iterations):
        if square <= enough:  # also where both are zero
            break
        image = operator(direction)
        curvature = (direction * image).sum()
        if curvature <= 0:  # nothing is left but rounding
            break
        step = square / curvature
        solution += step * direction
        residual -= step * image
        before, square = square, residual.square().sum()
        direction.mul_(square / before).add_(residual)
    return solution
