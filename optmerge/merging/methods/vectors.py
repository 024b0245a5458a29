"""Task vectors as streams of chunks (stage C's material): a tensor of any size is never held as a whole.

    vectors = RawVectors(models)
    for chunk in vectors.chunks("medicine", "model.embed_tokens.weight"):
        chunk.values          # fp32, a buffer of the stream: overwritten by the next chunk

A transform is a `TaskVectors` over another one, so transforms stack:
``Trimmed(Dropped(RawVectors(models), ...), ...)``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import torch

from optmerge.merging.kernels import compiled
from optmerge.merging.methods.base import Models, working_dtype
from optmerge.records import Progress

CHUNK = 1 << 15
"""Elements of a chunk: a handful of fp32 buffers of this size stay in a core's cache, and torch does not share work as
small as this among threads, whose waiting for each other costs more than it saves. Threads pay across parameters."""

_RUN = 64  # neighbours that a sample takes at once: whole cache lines

Index = tuple[int | slice, ...]


class Chunk(NamedTuple):
    """A box of one expert's task vector.

    Attributes:
        box: Its index in the parameter (transposed, where the stream is by rows and the parameter input-first).
        offset: Flat index of its first element; chunks come in flat order and leave nothing out.
        values: [*box], contiguous, fp32 or fp64; may be changed in place.
    """

    box: Index
    offset: int
    values: torch.Tensor


def boxes(shape: tuple[int, ...], limit: int, *, whole_rows: bool = False) -> Iterator[tuple[int, Index]]:
    """(flat offset, index) of boxes that tile a tensor in flat order.

    Args:
        shape: Of the tensor.
        limit: Most elements of a box; one row, where rows stay whole, may have more.
        whole_rows: Never cut along the last dimension.
    """
    size = math.prod(shape)
    if size == 0:
        return
    if size <= limit or not shape or (whole_rows and len(shape) == 1):
        yield 0, ()
        return
    inner = size // shape[0]
    if inner <= limit or (whole_rows and len(shape) == 2):
        step = max(1, limit // inner)
        for start in range(0, shape[0], step):
            yield start * inner, (slice(start, min(start + step, shape[0])),)
        return
    for first in range(shape[0]):
        for offset, index in boxes(shape[1:], limit, whole_rows=whole_rows):
            yield first * inner + offset, (first, *index)


class TaskVectors(ABC):
    """The task vectors of some experts, read chunk by chunk.

    Attributes:
        models: Where they come from.
        by_rows: Chunks hold whole rows, a row being the inputs of one output: input-first matrices are transposed, a
            convolution's [out, in, ...] is [out, in * ...], and a vector is one row however it is shaped.
    """

    models: Models
    by_rows: bool

    def prepare(self, progress: Progress | None = None) -> None:  # noqa: B027
        """Gather what depends on all parameters at once. See `Method.prepare`."""

    @abstractmethod
    def chunks(self, expert: str, name: str) -> Iterator[Chunk]:
        """The chunks of one expert's task vector of one parameter."""

    def sample(self, expert: str, name: str, stride: int) -> torch.Tensor:
        """About one entry in ``stride`` of one expert's task vector of one parameter, flat; always the same ones."""
        taken, skip = [], 0
        for chunk in self.chunks(expert, name):
            taken.append(chunk.values.view(-1)[skip::stride].clone())
            skip = (skip - chunk.values.numel()) % stride
        return torch.cat(taken) if taken else torch.empty(0)

    def oriented(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """A parameter so that chunks' indices hold: a view, but for rows of a convolution that is not contiguous."""
        if not self.by_rows or tensor.ndim < 2:
            return tensor
        kind = self.models.kind(name)
        if kind.structure == "vector":
            return tensor.flatten()
        if kind.structure == "convolution":
            outputs = next(axis for axis, size in enumerate(tensor.shape) if size > 1)
            return tensor.flatten(outputs + 1)
        return tensor.mT if kind.input_first else tensor


class RawVectors(TaskVectors):
    """expert - base, each cast up first; of an adapter that is known by its factors, their product."""

    def __init__(self, models: Models, *, by_rows: bool = False, limit: int = CHUNK) -> None:
        self.models = models
        self.by_rows = by_rows
        self.limit = limit

    def chunks(self, expert: str, name: str) -> Iterator[Chunk]:
        """See `TaskVectors.chunks`."""
        base, tuned = self._pair(expert, name)
        base, tuned = self.oriented(base, name), self.oriented(tuned, name)
        dtype = working_dtype(base)
        library = compiled() if dtype == torch.float32 else None
        values, origin = torch.empty(0, dtype=dtype), torch.empty(0, dtype=dtype)
        for offset, index in boxes(tuple(base.shape), self.limit, whole_rows=self.by_rows):
            part = base[index]
            if values.shape != part.shape:
                values, origin = torch.empty(part.shape, dtype=dtype), torch.empty(part.shape, dtype=dtype)
            if library is None or not library.subtract(values, tuned[index], part):
                values.copy_(tuned[index])
                origin.copy_(part)
                values.sub_(origin)
            yield Chunk(index, offset, values)

    def sample(self, expert: str, name: str, stride: int) -> torch.Tensor:
        """See `TaskVectors.sample`; reads hardly more than it returns."""
        base, tuned = self._pair(expert, name)
        blocks = base.numel() // (_RUN * stride)
        if not blocks or not base.is_contiguous() or not tuned.is_contiguous():
            return super().sample(expert, name, stride)
        dtype = working_dtype(base)
        taken, origin = (
            tensor.view(-1)[: blocks * _RUN * stride].view(blocks, _RUN * stride)[:, :_RUN].to(dtype, copy=True)
            for tensor in (tuned, base)
        )
        return taken.sub_(origin).reshape(-1)

    def _pair(self, expert: str, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """What is subtracted, and from what: zero from the product, where there are factors."""
        base, factors = self.models.base(name), self.models.factors(expert, name)
        if factors is None:
            return base, self.models.expert(expert, name)
        dtype = working_dtype(base)
        return torch.zeros((), dtype=dtype).expand(base.shape), factors.product(dtype)
