"""Spherical interpolation of two models (stage F, geodesic; Shoemake 1985, "Animating rotation", section 3.3).

Per tensor, on the weights and not on task vectors: the angle is that of the two tensors seen as flat vectors, and the
result is a combination of the tensors as they are, not of unit vectors.
"""

from __future__ import annotations

import math

import torch

from optmerge.merging.methods.base import Method, Models, working_dtype
from optmerge.merging.methods.vectors import CHUNK, boxes

_COLLINEAR = 0.9995  # |cos| above which the arc is a line; also two opposite tensors, between which no arc is shortest
_ZERO = 1e-8  # norm up to which a tensor has no direction


def arc(cosine: float, t: float) -> tuple[float, float]:
    """Factors of the two ends at ``t`` of the way along the arc between vectors with that cosine."""
    if abs(cosine) > _COLLINEAR:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


class Slerp(Method):
    """The point ``t`` of the way from the first to the second expert; from the base, if there is one expert.

    A tensor that is zero in either has no direction and is interpolated along the line.
    """

    def __init__(self, t: float, *, experts: int) -> None:
        super().__init__((1.0,) * experts)
        self.t = t

    def delta(self, models: Models, name: str) -> torch.Tensor:
        """See `Method.delta`."""
        base = models.base(name)
        ends = [models.expert(expert, name) for expert in models.experts]
        first, second = ends if len(ends) == 2 else (base, ends[0])
        dtype = working_dtype(base)
        from_first, from_second = arc(_cosine(first, second), self.t)
        delta = torch.empty(base.shape, dtype=dtype)
        for _, index in boxes(tuple(base.shape), CHUNK):
            part = first[index].to(dtype) * from_first
            part += second[index].to(dtype) * from_second
            delta[index] = part.sub_(base[index].to(dtype))
        return delta


def _cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    """Of two tensors seen as flat vectors, summed in fp64; 1, which is to say a line, if either is zero."""
    squares = torch.zeros(2, dtype=torch.float64)
    product = torch.zeros((), dtype=torch.float64)
    for _, index in boxes(tuple(first.shape), CHUNK):
        a, b = first[index].reshape(-1).double(), second[index].reshape(-1).double()
        squares += torch.stack([a.dot(a), b.dot(b)])
        product += a.dot(b)
    norms = squares.sqrt()
    if float(norms.min()) <= _ZERO:
        return 1.0
    return float((product / norms.prod()).clamp(-1, 1))
