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
        [d_out, d_in] in the dtype of the deltas. Sums are in fp64, in which one pair of matrices is held at a time.
    """
    used = [index for index, weight in enumerate(weights) if weight > 0]

    def weighted(index: int, matrix: torch.Tensor) -> torch.Tensor:
        product = matrix @ shrunken(grams[index], shrink).mul_(weights[index])
        return product if output_grams is None else shrunken(output_grams[index], shrink) @ product

    def operator(matrix: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(matrix)
        for index in used:
            total += weighted(index, matrix)
        return total

    begin = torch.zeros_like(deltas[0], dtype=torch.float64)
    target = torch.zeros_like(begin)
    for index in used:
        begin.add_(deltas[index], alpha=start * weights[index])
        target += weighted(index, deltas[index].double())
    if output_grams is None:  # K products with one matrix are one with their sum
        summed = torch.zeros_like(grams[0], dtype=torch.float64)
        for index in used:
            summed += shrunken(grams[index], shrink).mul_(weights[index])
        operator = partial(torch.matmul, other=summed)
    solved = conjugate_gradient(operator, target, begin, iterations=iterations, tolerance=tolerance)
    return solved.to(deltas[0].dtype)


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
