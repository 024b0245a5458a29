"""Points on the sphere through the models: the arc between two, and the mean of any number (stage F, geodesic).

    arc(products, t=0.3, line=COLLINEAR)                      # SLERP: factors of two vectors
    spherical_mean(products, weights=(0.5, 0.3, 0.2), steps=100, tolerance=1e-9)

Both are rules of `combination`: they see the vectors' inner products alone, and give factors of the vectors as they
are, not of unit vectors. An iteration therefore moves K numbers and not a model.
"""

from __future__ import annotations

import torch

COLLINEAR = 0.9995
"""|cos| above which SLERP's arc is a line; also of two opposite tensors, between which no arc is shortest."""
STRAIGHT = 1 - 1e-12
"""|cos| above which the arc is not to be told from a line; also of two opposite tensors."""

_ZERO = 1e-8  # norm up to which a vector has no direction
_LOST = 1e-6  # norm of the mean of unit vectors up to which it has no direction; distance from the antipode in radians


def arc(products: torch.Tensor, *, t: float, line: float, zero_is_orthogonal: bool = False) -> torch.Tensor:
    """Factors of the two ends at ``t`` of the way along the arc between them (Shoemake 1985, section 3.3).

    (sin((1 - t) w) v_0 + sin(t w) v_1) / sin w, with w the angle between them.

    Args:
        products: fp64[..., 2, 2], inner products of the ends.
        t: 0 is the first end, 1 the second.
        line: |cos| above which the line between the ends is taken.
        zero_is_orthogonal: A vector of zeros is at a right angle to the other (mergekit); else it is on a line with it.

    Returns:
        fp64[..., 2].
    """
    norms = products.diagonal(dim1=-2, dim2=-1).sqrt()
    zero = (norms <= _ZERO).any(dim=-1)
    cosine = (products[..., 0, 1] / norms.prod(dim=-1).masked_fill(zero, 1.0)).clamp(-1, 1)
    if zero_is_orthogonal:
        cosine = cosine.masked_fill(zero, 0.0)
    straight = cosine.abs() > line
    if not zero_is_orthogonal:
        straight = straight | zero
    angle = cosine.masked_fill(straight, 0.0).acos()
    ends = torch.tensor([1 - t, t], dtype=products.dtype)
    curved = torch.sin(angle.unsqueeze(-1) * ends) / angle.sin().unsqueeze(-1)
    return torch.where(straight.unsqueeze(-1), ends, curved)


def spherical_mean(
    products: torch.Tensor, *, weights: tuple[float, ...], steps: int, tolerance: float = 0.0
) -> torch.Tensor:
    """Factors of the point whose direction is the vectors' weighted mean on the sphere, with their mean norm.

    Starts at the direction of sum_k w_k u_k and goes along the mean of the logarithms of all u_k there (Karcher 1977;
    Buss and Fillmore 2001, algorithm A1). The first step from there is exact for two vectors: it ends on their arc. A
    vector of zeros has no direction and takes part in the mean norm alone; one that is opposite to the present point
    has no shortest way to it and does not pull. Where the start has no direction, as of two opposite vectors, the
    weighted mean of the vectors themselves is taken.

    Args:
        products: fp64[..., K, K], inner products of the vectors.
        weights: 0 or more each, adding up to 1.
        steps: At most so many.
        tolerance: A step shorter than this, in radians, is not made and ends it.

    Returns:
        fp64[..., K].
    """
    shares = torch.tensor(weights, dtype=products.dtype)
    norms = products.diagonal(dim1=-2, dim2=-1).sqrt()
    zero = norms <= _ZERO
    inverse = torch.where(zero, 0.0, 1.0 / norms.masked_fill(zero, 1.0))
    units = products * inverse.unsqueeze(-1) * inverse.unsqueeze(-2)
    pulls = shares * ~zero
    pulls = pulls / pulls.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(products.dtype).tiny)
    length = _norm(pulls, units)
    lost = length <= _LOST
    point = pulls / length.masked_fill(lost, 1.0)  # of unit vectors, as everything up to the end
    for _ in range(steps):
        cosines = (units @ point.unsqueeze(-1)).squeeze(-1).clamp(-1, 1)
        angles = cosines.acos()
        towards = pulls * torch.where(angles > torch.pi - _LOST, 0.0, 1.0 / torch.sinc(angles / torch.pi))
        tangent = towards - (towards * cosines).sum(dim=-1, keepdim=True) * point
        distance = _norm(tangent, units)
        if bool((distance.masked_fill(lost, 0.0) <= tolerance).all()):
            break
        point = distance.cos() * point + torch.sinc(distance / torch.pi) * tangent
        point = point / _norm(point, units).masked_fill(lost, 1.0)
    radius = (shares * norms).sum(dim=-1, keepdim=True)
    return torch.where(lost, shares, radius * point * inverse)


def _norm(factors: torch.Tensor, products: torch.Tensor) -> torch.Tensor:
    """[..., 1]: of the combination of vectors with those inner products."""
    return ((products @ factors.unsqueeze(-1)).squeeze(-1) * factors).sum(dim=-1, keepdim=True).clamp_min(0).sqrt()
