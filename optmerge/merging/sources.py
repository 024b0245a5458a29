"""What a coefficient multiplies, per parameter: dense deltas, low-rank ones, and the segments that hold them.

A segment is a contiguous box of a parameter, with the base's values and one source per direction, all of its shape.
Nothing here is ever written to: tensors are views of mapped files wherever the layout on disk allows.

    for segment in deltas.segments("model.layers.0.mlp.experts.gate_up_proj"):
        part = segment.rows(0, 128)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True, slots=True)
class Source:
    """A dense delta.

    Attributes:
        tensor: The expert's values, or the delta itself; module layout.
        absolute: True when ``tensor`` is the expert's values, from which the base must be subtracted.
    """

    tensor: torch.Tensor
    absolute: bool

    def rows(self, lo: int, hi: int) -> Source:
        """Rows ``lo`` to ``hi`` of the first dimension."""
        return self.box((slice(lo, hi),))

    def box(self, index: tuple[slice, ...]) -> Source:
        """A box of the parameter."""
        return Source(self.tensor[index], self.absolute)


@dataclass(frozen=True, slots=True)
class LowRank:
    """A delta scaling * b @ a that is never multiplied out as a whole (a LoRA adapter's, Hu et al. 2022, equation 3).

    Attributes:
        b: [..., m, r]; leading dimensions are those of the parameter (stacked experts).
        a: [..., r, n].
        scaling: Factor of the product.
        exact: Gives the expert's whole values as PEFT merges them, for a one-hot row.
    """

    b: torch.Tensor
    a: torch.Tensor
    scaling: float
    exact: Callable[[], torch.Tensor]

    def rows(self, lo: int, hi: int) -> LowRank:
        """Rows ``lo`` to ``hi`` of the parameter's first dimension."""
        return self.box((slice(lo, hi),))

    def box(self, index: tuple[slice, ...]) -> LowRank:
        """A box of the parameter: of its leading dimensions, rows, and columns."""
        whole = index + (slice(None),) * (self.b.ndim - len(index))
        leading, (rows, columns) = whole[:-2], whole[-2:]
        exact = self.exact
        return LowRank(
            self.b[(*leading, rows)], self.a[(*leading, slice(None), columns)], self.scaling, lambda: exact()[index]
        )


AnySource = Source | LowRank | None
"""None: the direction leaves the parameter as it is in the base, bit for bit."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A contiguous box of a parameter, in module layout.

    Attributes:
        index: Where the box is; () is the whole parameter.
        base: The base's values.
        sources: One per direction, in their order, of the base's shape.
        temporary: Whether values were assembled for this segment rather than mapped, so that it is not to be kept.
        offset: Which of the parameter's elements is the box's first, in row-major order.
        strides: How far apart in that order neighbours along each axis of the box are; () where the box's elements
            follow one another in the parameter too.
    """

    index: tuple[slice, ...]
    base: torch.Tensor
    sources: tuple[AnySource, ...]
    temporary: bool = False
    offset: int = 0
    strides: tuple[int, ...] = ()

    def rows(self, lo: int, hi: int) -> Segment:
        """Rows ``lo`` to ``hi`` of the box's first dimension; ``index`` is then relative to the segment."""
        return Segment(
            (slice(lo, hi),),
            self.base[lo:hi],
            tuple(source.rows(lo, hi) if source is not None else None for source in self.sources),
            self.temporary,
            self.offset + lo * (self.strides[0] if self.strides else math.prod(self.base.shape[1:])),
            self.strides,
        )

    def runs(self) -> Iterator[Segment]:
        """Boxes of the segment whose elements follow one another in the parameter; indices are relative to it."""
        shape = self.base.shape
        strides = self.strides or _row_major(shape)
        whole = self.base.ndim  # axes from here on lie in the parameter as they do in the box
        step = 1
        while whole and (shape[whole - 1] == 1 or strides[whole - 1] == step):
            whole -= 1
            step *= shape[whole]
        for corner in itertools.product(*map(range, shape[:whole])):
            box = tuple(slice(at, at + 1) for at in corner)
            yield Segment(
                box,
                self.base[box],
                tuple(source.box(box) if source is not None else None for source in self.sources),
                self.temporary,
                self.offset + sum(at * stride for at, stride in zip(corner, strides, strict=False)),
            )


def placed(segment: Segment, shape: Sequence[int]) -> Segment:
    """The segment with ``offset`` and ``strides`` as its ``index`` has them in a parameter of this shape."""
    strides = _row_major(shape)
    first = sum((part.start or 0) * stride for part, stride in zip(segment.index, strides, strict=False))
    return replace(segment, offset=first, strides=strides)


def _row_major(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
