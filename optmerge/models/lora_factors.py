"""LoRA factors as tensors: a change of one parameter that is the product of two thin matrices.

The factors are views of the adapter's mapped file, whatever way round the parameter is stored; nothing of the
parameter's own size is ever made here but by `LoraFactors.product`.

    factors = LoraFactors(b, a, scaling=2.0)     # b [..., m, r], a [..., r, n]
    factors.box((slice(0, 1), slice(0, 8), slice(0, 16))).product(torch.float32)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class LoraFactors:
    """scaling * b @ a in the layout of the parameter that it changes (Hu et al. 2022, equation 3).

    Attributes:
        b: [..., m, r], any floating dtype; leading dimensions are those of the parameter (stacked experts).
        a: [..., r, n].
        scaling: Factor of the product.
    """

    b: torch.Tensor
    a: torch.Tensor
    scaling: float

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's shape."""
        return (*self.b.shape[:-1], self.a.shape[-1])

    def box(self, index: Sequence[slice]) -> LoraFactors:
        """The factors of a box of the parameter, one slice per dimension; ``()`` is all of it."""
        if not index:
            return self
        *leading, rows, columns = index
        return LoraFactors(self.b[(*leading, rows)], self.a[(*leading, slice(None), columns)], self.scaling)

    def bound(self) -> float:
        """No value of the change is larger than this in magnitude; NaN where a factor holds NaN."""
        largest = [float(factor.abs().max()) for factor in (self.b, self.a)]
        return self.b.shape[-1] * largest[0] * largest[1] * abs(self.scaling)

    def product(self, dtype: torch.dtype) -> torch.Tensor:
        """The change as a dense tensor, multiplied in ``dtype``."""
        return (self.b.to(dtype) @ self.a.to(dtype)) * self.scaling


def assemble(
    shape: Sequence[int], parts: Sequence[tuple[Sequence[slice], LoraFactors]], *, dtype: torch.dtype
) -> LoraFactors | None:
    """One pair of factors for a parameter whose boxes have factors of their own.

    Boxes with the same leading index stand beside each other along the rank, each with its own rows of ``b``; where
    they have fewer ranks than the widest, zeros fill up. The scalings go into ``b``.

    Args:
        shape: The parameter's: [..., m, n].
        parts: Boxes, each of one leading index, some rows and all columns, with factors of shape [rows, n].
        dtype: Of the result.

    Returns:
        The factors, or None when a box is of another form.
    """
    *leading, rows, columns = shape
    placed: list[tuple[tuple[int, ...], slice, slice, LoraFactors]] = []
    ranks: dict[tuple[int, ...], int] = {}
    for index, factors in parts:
        *lead, height, width = index if index else [slice(0, size) for size in shape]
        if any(cut.stop - cut.start != 1 for cut in lead) or (width.start, width.stop) != (0, columns):
            return None
        place = tuple(int(cut.start) for cut in lead)
        start = ranks.get(place, 0)
        ranks[place] = start + factors.b.shape[-1]
        placed.append((place, height, slice(start, ranks[place]), factors))
    widest = max(ranks.values())
    b = torch.zeros(*leading, rows, widest, dtype=dtype)
    a = torch.zeros(*leading, widest, columns, dtype=dtype)
    for place, height, rank, factors in placed:
        b[place][height, rank] = factors.b.to(dtype) * factors.scaling
        a[place][rank] = factors.a.to(dtype)
    return LoraFactors(b, a, 1.0)
