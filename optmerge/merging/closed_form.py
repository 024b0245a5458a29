"""Coefficients that best reproduce every expert's layer outputs on its own inputs, in closed form.

    products = [output_products(deltas, gram) for gram in grams]      # of one tensor, one Gram matrix per expert
    matrix, vector = normal_equations(products, emphasis=1.0)
    coefficients = solve(matrix, vector, towards=0.3, ridge=0.1)      # float64[K]

With task vectors tau_k and G_t the mean of x x^T over expert t's inputs x of a linear layer, the merged layer's mean
squared error on expert t's outputs is tr(D G_t D^T), D = sum_k c_k tau_k - tau_t: a quadratic form in the K
coefficients, whose matrix is A_t[j, k] = tr(tau_j G_t tau_k^T). This is the objective of RegMean (Jin et al. 2023,
equation 1) with the merged weight held to the span of the task vectors. The base's error is e_t = A_t[t, t]. Expert t's
error is weighted by e_t^(emphasis - 1) within a layer, so that with an emphasis of 0 it counts as a share of what the
base's is, with 1 as it is, and beyond that experts that change a layer's outputs more are favoured. Neither the size of
a layer nor that of its inputs decides; errors of several tensors are summed where these have their coefficients in
common.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

Matrix = npt.NDArray[np.float64]
Vector = npt.NDArray[np.float64]

CHUNK = 1 << 22  # elements of all deltas together that are multiplied at a time
_NOISE = 1e-9  # of the largest eigenvalue: directions that no output depends on


@torch.no_grad()
def output_products(deltas: Sequence[torch.Tensor], gram: torch.Tensor) -> Matrix:
    """A[j, k] = tr(tau_j G tau_k^T), how the outputs that task vectors add correlate over the inputs of G.

    Args:
        deltas: K task vectors, [d_out, d_in] each, on one device.
        gram: [d_in, d_in], mean of x x^T; used in the deltas' dtype, on their device.

    Returns:
        float64[K, K], symmetric; products in the deltas' dtype, summed up in fp64 over chunks of rows.
    """
    count, (rows, columns) = len(deltas), deltas[0].shape
    gram = gram.to(deltas[0].device, deltas[0].dtype)
    precise = torch.float64 if gram.device.type != "mps" else torch.float32
    total = torch.zeros(count, count, dtype=precise, device=gram.device)
    step = max(1, CHUNK // (count * columns))
    for low in range(0, rows, step):
        part = torch.stack([delta[low : low + step] for delta in deltas])
        outputs = (part.reshape(-1, columns) @ gram).reshape(count, -1)
        total += outputs @ part.reshape(count, -1).mT
    found: Matrix = ((total + total.mT) / 2).to("cpu", torch.float64).numpy()
    return found


def normal_equations(products: Sequence[Matrix], *, emphasis: float = 0.0) -> tuple[Matrix, Vector]:
    """One tensor's share of the least squares: the matrix H and vector b of H c = b.

    Args:
        products: A_t of every expert t, float64[K, K] each, in the order of the task vectors.
        emphasis: On the experts that change the outputs most: the power of e_t = A_t[t, t] that multiplies expert t's
            share of the error.

    Returns:
        H = sum_t w_t A_t and b = sum_t w_t A_t[:, t] with w_t = (e_t / mean e)^emphasis / e_t; an expert that leaves
        its own outputs as the base's are has no share.
    """
    energies = np.array([product[expert, expert] for expert, product in enumerate(products)])
    matrix, vector = np.zeros_like(products[0]), np.zeros(len(products))
    for expert, product in enumerate(products):
        if energies[expert] > 0:
            weight = (energies[expert] / energies.mean()) ** emphasis / energies[expert]
            matrix += weight * product
            vector += weight * product[:, expert]
    return matrix, vector


def solve(matrix: Matrix, vector: Vector, *, towards: float, ridge: float) -> Vector:
    """The coefficients c that minimise c'Hc - 2b'c + ridge * mean(diag H) * |c - towards|^2.

    Args:
        matrix: H, float64[K, K], positive semi-definite; sums of `normal_equations`.
        vector: b, float64[K].
        towards: The value that every coefficient is drawn to.
        ridge: How strongly, in units of the mean curvature, 0 or more. What the outputs do not depend on stays at
            ``towards`` whatever the strength.

    Returns:
        float64[K].
    """
    values, vectors = np.linalg.eigh(matrix)
    largest = float(values[-1])
    if largest <= 0:
        return np.full(len(vector), towards)
    seen = values > _NOISE * largest
    shrunk = np.where(seen, values + ridge * np.trace(matrix) / len(vector), 1.0)
    step = vectors.T @ (vector - matrix @ np.full(len(vector), towards))
    found: Vector = towards + vectors @ np.where(seen, step / shrunk, 0.0)
    return found
