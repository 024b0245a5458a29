"""Frames: each expert's part of the merge in singular components, its own or a basis that all share (stages C, D).

Spectral truncation of STAR (Lee et al. 2025, "STAR", section 3): each expert's leading components by themselves.

The whitened stack of TSV-M (Gargiulo et al. 2025, "Task Singular Vectors", algorithm 1): every expert keeps its leading
singular vectors, and all of them together are replaced by the nearest orthonormal set, so that no two experts write
into the same direction.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from optmerge.merging.methods.matrices import Matrix
from optmerge.merging.methods.spectrum import Svd, cut_svd, polar, truncate_spectrum


def truncated_parts(deltas: Sequence[Matrix], *, share: float, tolerance: float) -> list[torch.Tensor]:
    """What each expert contributes to STAR's mean of truncated task vectors; the merge is their sum.

    Args:
        deltas: K task vectors, [..., m, n] each, fp32 or fp64; finite.
        share: See `truncate_spectrum`.
        tolerance: Likewise.

    Returns:
        K tensors [..., m, n].
    """
    return [truncate_spectrum(delta, share=share, tolerance=tolerance).div_(len(deltas)) for delta in deltas]


def whitened_parts(deltas: Sequence[Matrix], *, tolerance: float, ranks: float = 1.0) -> list[torch.Tensor]:
    """What each expert contributes to the merge in the common frame, U_i diag(sigma_i) Vh_i of `whitened_factors`.

    The merge is their sum.

    Args:
        deltas: See `whitened_factors`.
        tolerance: Likewise.
        ranks: Likewise.

    Returns:
        K tensors [..., m, n].
    """
    factors = whitened_factors(deltas, tolerance=tolerance, ranks=ranks)
    return [(u * sigma.unsqueeze(-2)) @ vh for u, sigma, vh in factors]


def whitened_factors(deltas: Sequence[Matrix], *, tolerance: float, ranks: float = 1.0) -> list[Svd]:
    """Every expert's leading singular values, with singular vectors that are orthonormal over all experts together.

    An expert's scale is the scale of its part: scaling its task vector by a nonzero number changes no other part.

    Args:
        deltas: K task vectors, [..., m, n] each, fp32 or fp64; finite.
        tolerance: Singular values at or below this share of the largest are cut, in the experts and in their stack.
        ranks: How many components each expert keeps, as a multiple of the paper's min(m, n) / K. Above 1 they are more
            than orthonormal vectors can be, and overlap.

    Returns:
        K times the whitened U [..., m, r], sigma [..., r] and Vh [..., r, n].
    """
    # Each expert has the same share of the ranks (at least one: with more experts than ranks they overlap).
    most = min(deltas[0].shape[-2:])
    rank = min(most, max(1, int(ranks * most / len(deltas))))
    kept = [_leading(delta, rank, tolerance) for delta in deltas]
    left = polar(torch.cat([svd.u for svd in kept], dim=-1), tolerance=tolerance)
    right = polar(torch.cat([svd.vh for svd in kept], dim=-2), tolerance=tolerance)
    widths = [svd.sigma.shape[-1] for svd in kept]
    lefts, rights = torch.split(left, widths, dim=-1), torch.split(right, widths, dim=-2)
    return [Svd(u, svd.sigma, vh) for u, svd, vh in zip(lefts, kept, rights, strict=True)]


def _leading(delta: Matrix, rank: int, tolerance: float) -> Svd:
    """The leading components as tensors of their own: views would keep the whole decomposition of every expert."""
    u, sigma, vh = cut_svd(delta, tolerance=tolerance)
    return Svd(u[..., :rank].clone(), sigma[..., :rank].clone(), vh[..., :rank, :].clone())
