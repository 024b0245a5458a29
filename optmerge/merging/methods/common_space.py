"""Iso-CTS: a flat spectrum over what the experts have in common and over what is each one's own.

    merged = iso_cts(task_vectors, common=0.8, tolerance=1e-6)

Marczak et al. 2025, "No Task Left Behind", algorithm 2. The summed task vectors of Iso-C lose what only one expert
has; here a share of the ranks is set aside for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from optmerge.merging.methods.spectrum import cut_svd, polar


def ranks(rank: int, experts: int, common: float) -> tuple[int, int]:
    """How many ranks are common, and how many each expert has of its own.

    Args:
        rank: min(m, n).
        experts: K.
        common: Share that is asked for, 0 to 1. What is left of the ranks is rounded to a multiple of K, as in the
            authors' code, so that the common part may be smaller or larger than asked for.

    Returns:
        (k_c, k_t) with k_c + K k_t = rank.
    """
    own = min(round((rank - int(rank * common)) / experts), rank // experts)
    return rank - own * experts, own


def iso_cts(deltas: Sequence[torch.Tensor], *, common: float, tolerance: float) -> torch.Tensor:
    """mean(sigma) * U @ Vh, with the common and the own singular vectors made orthonormal together.

    Only the outputs' side of the own parts is freed from the common space, as in the paper, so that the method is
    another one for transposed matrices.

    Args:
        deltas: K task vectors, [..., out, in] each, fp32 or fp64; finite.
        common: See `ranks`; with 1 it is Iso-C.
        tolerance: Singular values at or below this share of the largest are cut; of an expert's own part, at or below
            this share of its task vector's norm, for what is left of an expert that has nothing of its own is rounding
            noise. The mean is over all min(m, n) values, those that are cut included.

    Returns:
        [..., out, in].
    """
    shared, own = ranks(min(deltas[0].shape[-2:]), len(deltas), common)
    u, sigma, vh = cut_svd(sum(deltas[1:], deltas[0]), tolerance=tolerance)
    u, sigma, vh = u[..., :shared], sigma[..., :shared], vh[..., :shared, :]
    lefts, sigmas, rights = [u], [sigma], [vh]
    for delta in deltas if own else ():
        rest = delta - u @ (u.mT @ delta)
        u_own, sigma_own, vh_own = torch.linalg.svd(rest, full_matrices=False)
        keep = sigma_own > tolerance * torch.linalg.matrix_norm(delta).unsqueeze(-1)
        # Cut first: the whole decompositions of all experts together are as large as the task vectors.
        keep, u_own, sigma_own, vh_own = keep[..., :own], u_own[..., :own], sigma_own[..., :own], vh_own[..., :own, :]
        lefts.append(u_own * keep.unsqueeze(-2))
        sigmas.append(sigma_own * keep)
        rights.append(vh_own * keep.unsqueeze(-1))
    left = polar(torch.cat(lefts, dim=-1), tolerance=tolerance)
    right = polar(torch.cat(rights, dim=-2), tolerance=tolerance)
    return (left @ right).mul_(torch.cat(sigmas, dim=-1).mean(dim=-1)[..., None, None])
