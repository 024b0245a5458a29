"""Iso-C: isotropic merging in the common subspace (Marczak et al. 2025, "No Task Left Behind", algorithm 1).

Pure tensor functions. Data-free: every matrix of the summed task vectors keeps its singular directions and gets one
singular value, their mean.
"""

from __future__ import annotations

import torch


def flatten_spectrum(matrix: torch.Tensor, *, tolerance: float = 1e-6) -> torch.Tensor:
    """mean(sigma) * U @ Vh of a matrix or a stack of matrices.

    Args:
        matrix: [..., m, n]; any floating dtype, computed in fp32 (fp64 stays fp64).
        tolerance: Singular values below this share of the largest are cut: their directions are rounding noise, and
            would otherwise be raised to full size. The mean is over min(m, n) values, as in the reference.

    Returns:
        [..., m, n] in the computed dtype; zero where the matrix is zero.
    """
    work = matrix if matrix.dtype == torch.float64 else matrix.float()
    u, sigma, vh = torch.linalg.svd(work, full_matrices=False)
    keep = (sigma > tolerance * sigma[..., :1]).to(work.dtype)
    mean = sigma.mean(dim=-1, keepdim=True)
    flat: torch.Tensor = (u * (keep * mean).unsqueeze(-2)) @ vh
    return flat


def iso_c(deltas: list[torch.Tensor], *, tolerance: float = 1e-6) -> torch.Tensor:
    """The merged delta of one tensor, before the global scale alpha.

    Args:
        deltas: K task vectors of one shape. Matrices (and stacks of them, such as fused experts) are summed and
            flattened; vectors and scalars are averaged.
        tolerance: See `flatten_spectrum`.
    """
    total = deltas[0].clone()
    for delta in deltas[1:]:
        total += delta
    if total.ndim < 2:
        return total / len(deltas)
    if not torch.count_nonzero(total):  # an embedding that no expert touched: nothing to decompose
        return total
    if total.ndim > 3:  # a convolution kernel [out, in, kh, kw] is one linear map from in*kh*kw to out
        return flatten_spectrum(total.flatten(1), tolerance=tolerance).reshape(total.shape)
    return flatten_spectrum(total, tolerance=tolerance)
