"""Follow a layout conversion symbolically: run it on tensors that carry no data but know where each element came from.

transformers converts some checkpoints on load (experts stacked into one tensor, a fused projection cut in three, an
interleaved rotary layout undone). Running its own operations on `Traced` tensors tells exactly where every disk element
lands, from shapes alone, without a table of operations that could drift from the real ones.

    source = trace_source("experts.0.w1.weight", (14336, 4096))
    fused = torch.stack([source, ...])       # any mix of the tensor functions in `_FOLLOWED`
    fused.blocks                             # boxes of the result, each a strided view of one source

A tensor function that is not followed raises `UntraceableError`, which names it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

Factors = tuple[tuple[int, int], ...]  # mixed radix of one dimension: (size, stride in the source), outermost first


class UntraceableError(Exception):
    """A conversion uses a tensor function, or a cut through a permuted dimension, that tracing does not follow."""


@dataclass(frozen=True)
class Block:
    """A box of a traced tensor that is a strided view of one source tensor.

    Attributes:
        source: Name of the source tensor, which is contiguous.
        offset: Position in the source, in elements, of the box's first element.
        start: First index of the box along each dimension of the traced tensor.
        factors: Per dimension, how its index walks through the source.
    """

    source: str
    offset: int
    start: tuple[int, ...]
    factors: tuple[Factors, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """The box's size along each dimension."""
        return tuple(math.prod(size for size, _ in dimension) for dimension in self.factors)


class Traced(torch.Tensor):
    """A meta tensor made of blocks; every tensor function on it is followed or refused."""

    blocks: tuple[Block, ...]

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", str(func))
        if name in _FOLLOWED:
            return _FOLLOWED[name](*args, **(kwargs or {}))
        if name in _SHAPE_ONLY:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        raise UntraceableError(f"the tensor function {name!r} is not one of {', '.join(sorted(_FOLLOWED))}")


def trace_source(name: str, shape: Sequence[int]) -> Traced:
    """A traced tensor that stands for the whole of one source tensor."""
    strides = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
    factors = tuple(_simplified(((size, stride),)) for size, stride in zip(shape, strides, strict=True))
    return _traced(shape, [Block(name, 0, (0,) * len(shape), factors)])


def _traced(shape: Sequence[int], blocks: Iterable[Block]) -> Traced:
    with torch._C.DisableTorchFunctionSubclass():
        tensor = torch.empty(tuple(shape), device="meta").as_subclass(Traced)
    tensor.blocks = tuple(blocks)
    return tensor


def _simplified(factors: Factors) -> Factors:
    """Factors without size-1 entries, neighbours that walk the source evenly joined into one."""
    kept: list[tuple[int, int]] = []
    for size, stride in factors:
        if size == 1:
            continue
        if kept and kept[-1][1] == size * stride:
            kept[-1] = (kept[-1][0] * size, stride)
        else:
            kept.append((size, stride))
    return tuple(kept)


def _dimension(tensor: Traced, dim: int, *, extra: int = 0) -> int:
    return dim % (tensor.ndim + extra)


def _permute(tensor: Traced, *dims: Any) -> Traced:
    order = [_dimension(tensor, dim) for dim in _flat(dims)]
    blocks = [
        replace(b, start=tuple(b.start[d] for d in order), factors=tuple(b.factors[d] for d in order))
        for b in tensor.blocks
    ]
    return _traced([tensor.shape[d] for d in order], blocks)


def _transpose(tensor: Traced, dim0: int, dim1: int) -> Traced:
    order = list(range(tensor.ndim))
    dim0, dim1 = _dimension(tensor, dim0), _dimension(tensor, dim1)
    order[dim0], order[dim1] = dim1, dim0
    return _permute(tensor, *order)


def _cut(offset: int, factors: Factors, lo: int, hi: int) -> tuple[int, Factors]:
    """Offset and factors of the part lo:hi of one dimension of a block."""
    if (lo, hi) == (0, math.prod(size for size, _ in factors)):
        return offset, factors
    (_, stride), inner = factors[0], math.prod(size for size, _ in factors[1:])
    if lo % inner == 0 and hi % inner == 0:
        return offset + lo // inner * stride, _simplified((((hi - lo) // inner, stride), *factors[1:]))
    if lo // inner == (hi - 1) // inner:
        outer = lo // inner
        return _cut(offset + outer * stride, factors[1:], lo - outer * inner, hi - outer * inner)
    raise UntraceableError(f"the cut {lo}:{hi} goes through an interleaved dimension")


def _narrow(tensor: Traced, dim: int, start: int, length: int) -> Traced:
    dim = _dimension(tensor, dim)
    blocks = []
    for block in tensor.blocks:
        lo = max(start, block.start[dim])
        hi = min(start + length, block.start[dim] + block.lengths[dim])
        if lo >= hi:
            continue
        offset, factors = _cut(block.offset, block.factors[dim], lo - block.start[dim], hi - block.start[dim])
        blocks.append(
            Block(
                block.source,
                offset,
                (*block.start[:dim], lo - start, *block.start[dim + 1 :]),
                (*block.factors[:dim], factors, *block.factors[dim + 1 :]),
            )
        )
    return _traced([*tensor.shape[:dim], length, *tensor.shape[dim + 1 :]], blocks)


def _split(tensor: Traced, split_size_or_sections: int | Sequence[int], dim: int = 0) -> tuple[Traced, ...]:
    total = tensor.shape[_dimension(tensor, dim)]
    if isinstance(split_size_or_sections, int):
        step = split_size_or_sections
        sections: Sequence[int] = [min(step, total - at) for at in range(0, total, step)]
    else:
        sections = split_size_or_sections
    if sum(sections) != total:
        raise UntraceableError(f"a split of {total} into {list(sections)}")
    return tuple(_narrow(tensor, dim, sum(sections[:i]), size) for i, size in enumerate(sections))


def _chunk(tensor: Traced, chunks: int, dim: int = 0) -> tuple[Traced, ...]:
    return _split(tensor, math.ceil(tensor.shape[_dimension(tensor, dim)] / chunks), dim)


def _select(tensor: Traced, dim: int, index: int) -> Traced:
    dim = _dimension(tensor, dim)
    return _squeeze(_narrow(tensor, dim, index % tensor.shape[dim], 1), dim)


def _unbind(tensor: Traced, dim: int = 0) -> tuple[Traced, ...]:
    return tuple(_select(tensor, dim, index) for index in range(tensor.shape[_dimension(tensor, dim)]))


def _squeeze(tensor: Traced, dim: int) -> Traced:
    dim = _dimension(tensor, dim)
    if tensor.shape[dim] != 1:
        return tensor
    blocks = [
        replace(b, start=b.start[:dim] + b.start[dim + 1 :], factors=b.factors[:dim] + b.factors[dim + 1 :])
        for b in tensor.blocks
    ]
    return _traced([*tensor.shape[:dim], *tensor.shape[dim + 1 :]], blocks)


def _unsqueeze(tensor: Traced, dim: int) -> Traced:
    dim = _dimension(tensor, dim, extra=1)
    blocks = [
        replace(b, start=(*b.start[:dim], 0, *b.start[dim:]), factors=(*b.factors[:dim], (), *b.factors[dim:]))
        for b in tensor.blocks
    ]
    return _traced([*tensor.shape[:dim], 1, *tensor.shape[dim:]], blocks)


def _cat(tensors: Sequence[Traced], dim: int = 0) -> Traced:
    first = tensors[0]
    dim = _dimension(first, dim)
    blocks, at = [], 0
    for tensor in tensors:
        if [n for d, n in enumerate(tensor.shape) if d != dim] != [n for d, n in enumerate(first.shape) if d != dim]:
            raise UntraceableError(f"tensors of shapes {tuple(first.shape)} and {tuple(tensor.shape)} side by side")
        for block in tensor.blocks:
            start = (*block.start[:dim], block.start[dim] + at, *block.start[dim + 1 :])
            blocks.append(replace(block, start=start))
        at += tensor.shape[dim]
    return _traced([*first.shape[:dim], at, *first.shape[dim + 1 :]], blocks)


def _stack(tensors: Sequence[Traced], dim: int = 0) -> Traced:
    return _cat([_unsqueeze(tensor, dim) for tensor in tensors], dim)


def _reshape(tensor: Traced, *shape: Any) -> Traced:
    wanted = _flat(shape)
    if -1 in wanted:
        rest = math.prod(size for size in wanted if size != -1)
        wanted = [tensor.numel() // rest if size == -1 else size for size in wanted]
    groups = _aligned(tuple(tensor.shape), wanted)
    return _traced(wanted, [_reshaped(block, tuple(tensor.shape), wanted, groups) for block in tensor.blocks])


def _aligned(old: Sequence[int], new: Sequence[int]) -> list[tuple[range, range]]:
    """The finest pairs of runs of dimensions with equal products."""
    if math.prod(old) != math.prod(new):
        raise UntraceableError(f"a reshape of {tuple(old)} to {tuple(new)}")
    groups, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        first_i, first_j = i, j
        left = right = 1
        if i < len(old):
            left, i = old[i], i + 1
        if j < len(new):
            right, j = new[j], j + 1
        while left != right:
            if left < right:
                left, i = left * old[i], i + 1
            else:
                right, j = right * new[j], j + 1
        groups.append((range(first_i, i), range(first_j, j)))
    return groups


def _reshaped(block: Block, old: Sequence[int], new: Sequence[int], groups: list[tuple[range, range]]) -> Block:
    start: list[int] = []
    factors: list[Factors] = []
    for before, after in groups:
        if len(before) == len(after) == 1:
            start.append(block.start[before[0]])
            factors.append(block.factors[before[0]])
            continue
        if any(block.lengths[d] != old[d] for d in before):
            raise UntraceableError("a reshape of a dimension that was put together from several tensors")
        flat = tuple(factor for d in before for factor in block.factors[d])
        for d in after:
            taken, flat = _take(flat, new[d])
            start.append(0)
            factors.append(_simplified(taken))
    return Block(block.source, block.offset, tuple(start), tuple(factors))


def _take(factors: Factors, size: int) -> tuple[Factors, Factors]:
    """The outermost factors that make up ``size``, and the rest."""
    taken: list[tuple[int, int]] = []
    left = list(factors)
    while size > 1:
        extent, stride = left.pop(0)
        if size % extent == 0:
            taken.append((extent, stride))
            size //= extent
        elif extent % size == 0:
            taken.append((size, stride * (extent // size)))
            left.insert(0, (extent // size, stride))
            size = 1
        else:
            raise UntraceableError("a reshape across the cuts of an interleaved dimension")
    return tuple(taken), tuple(left)


def _getitem(tensor: Traced, index: Any) -> Traced:
    result, dim = tensor, 0
    for part in index if isinstance(index, tuple) else (index,):
        if part is Ellipsis and part is (index[-1] if isinstance(index, tuple) else index):
            break
        if isinstance(part, int):
            result = _select(result, dim, part)
        elif isinstance(part, slice) and part.step in (None, 1):
            lo, hi, _ = part.indices(result.shape[dim])
            result, dim = _narrow(result, dim, lo, max(hi - lo, 0)), dim + 1
        else:
            raise UntraceableError(f"the index {part!r}")
    return result


def _flat(numbers: Sequence[Any]) -> list[int]:
    first = numbers[0] if len(numbers) == 1 else None
    return list(cast("Sequence[int]", first if isinstance(first, Sequence) else numbers))


def _same(tensor: Traced, *_: Any, **__: Any) -> Traced:
    return tensor


_FOLLOWED: dict[str, Callable[..., Any]] = {
    "__getitem__": _getitem,
    "cat": _cat,
    "chunk": _chunk,
    "clone": _same,
    "concat": _cat,
    "contiguous": _same,
    "detach": _same,
    "flatten": lambda tensor: _reshape(tensor, -1),
    "narrow": _narrow,
    "permute": _permute,
    "reshape": _reshape,
    "select": _select,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "t": lambda tensor: _transpose(tensor, 0, 1),
    "transpose": _transpose,
    "unbind": _unbind,
    "unsqueeze": _unsqueeze,
    "view": _reshape,
}
_SHAPE_ONLY = frozenset({"__get__", "__len__", "__repr__", "dim", "is_contiguous", "ndimension", "numel", "size"})
