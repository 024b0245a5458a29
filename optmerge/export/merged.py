"""Merged tensors as a checkpoint's files want them: under its names, in its layout, a chunk at a time.

Where a tensor on disk is made of whole rows of parameters in order (which is the rule, and holds for the experts of a
mixture that the model fuses), its merged values go straight from the mapped files into the buffer that is written.
Where a load permutes it or weaves several parameters into it, one whole parameter is merged first.

    with ShardedWriter(folder, specs) as writer:
        stream_merged(Merge(recipe, family), "base", writer, torch.bfloat16)
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import torch

from optmerge.export.safetensors_writer import TensorSpec
from optmerge.merging.merge import Merge, cut
from optmerge.merging.sources import Segment

if TYPE_CHECKING:
    from optmerge.models.family import Family
    from optmerge.models.mapping import Piece

Box = tuple[tuple[int, int], ...]  # first and last + 1 along each dimension


class Sink(Protocol):
    """Takes declared tensors in their order; `ShardedWriter` is one."""

    @property
    def most(self) -> int:
        """Most elements that `reserve` gives of the current tensor."""

    def begin(self, name: str) -> None:
        """Begin the next tensor."""

    def reserve(self, count: int) -> torch.Tensor:
        """The next elements of the current tensor, flat, to be filled before the next call."""


class TensorSink:
    """Keeps tensors in memory.

    Args:
        specs: Every tensor.

    Attributes:
        tensors: Name -> tensor, filled as it goes.
    """

    def __init__(self, specs: Iterable[TensorSpec]) -> None:
        self.tensors = {spec.name: torch.empty(spec.shape, dtype=spec.dtype) for spec in specs}
        self._left = torch.empty(0)

    @property
    def most(self) -> int:
        """No limit but the tensor itself."""
        return self._left.numel()

    def begin(self, name: str) -> None:
        """Begin the tensor."""
        self._left = self.tensors[name].view(-1)

    def reserve(self, count: int) -> torch.Tensor:
        """The next elements of the tensor."""
        place, self._left = self._left[:count], self._left[count:]
        return place


def stream_tensor(tensor: torch.Tensor, sink: Sink) -> None:
    """All elements of a tensor into the sink's current one, cast to its type."""
    flat = tensor.detach().reshape(-1)
    done = 0
    while done < flat.numel():
        place = sink.reserve(min(sink.most, flat.numel() - done))
        place.copy_(flat[done : done + place.numel()])
        done += place.numel()


def stream_merged(merge: Merge, naming: str, sink: Sink, dtype: torch.dtype) -> None:
    """Every merged tensor on disk, in the order of `disk_order`.

    Args:
        merge: Where the values come from.
        naming: "base" or an expert: whose names and layout.
        sink: Gets them.
        dtype: Their type there.
    """
    family = merge.family
    layout = family.maps[naming]
    pieces: dict[str, list[Piece]] = defaultdict(list)
    for piece in layout.pieces:
        pieces[piece.disk].append(piece)
    held: dict[str, _Parameter] = {}  # parameters of which some disk tensor is still to come
    written: set[str] = set()
    for disks in disk_order(family, naming).values():
        for disk in disks:
            owners = layout.parameters_of(disk)
            for owner in owners:
                if owner not in held:
                    held[owner] = _Parameter(merge, naming, owner, dtype)
            sink.begin(disk)
            if not _stream_runs(pieces[disk], held, family.checkpoint(naming).tensors[disk].numel, sink):
                values = {owner: held[owner].whole() for owner in owners}
                stream_tensor(layout.disk_tensor(disk, values), sink)
                del values
            written.add(disk)
            for owner in owners:
                if written.issuperset(layout.disk_names(owner)):
                    held.pop(owner, None)


def disk_order(family: Family, naming: str) -> dict[str, list[str]]:
    """Merged parameter -> the disk tensors whose last part it is, in module order."""
    position = {parameter: index for index, parameter in enumerate(family.parameters)}
    layout = family.maps[naming]
    completed: dict[str, list[str]] = {parameter: [] for parameter in family.parameters}
    for parameter in family.parameters:
        for disk in layout.disk_names(parameter):
            if parameter == max(layout.parameters_of(disk), key=lambda owner: position.get(owner, -1)):
                completed[parameter].append(disk)
    return completed


class _Parameter:
    """One parameter while its disk tensors are written; one that is not merged is read as it is."""

    def __init__(self, merge: Merge, naming: str, name: str, dtype: torch.dtype) -> None:
        family = merge.family
        self.name, self.merge, self.dtype = name, merge, dtype
        if name in family.parameters:
            self.shape = family.parameters[name].shape
            self.segments = merge.segments(name)
        else:
            value = family.read(naming, name)
            self.shape = tuple(value.shape)
            self.segments = [Segment((), value, ())]
        self.segment_at = {_box(segment.index, self.shape): segment for segment in self.segments}
        self._whole: torch.Tensor | None = None

    def stream(self, segment: Segment, sink: Sink) -> None:
        """Merge a segment into the sink's current tensor."""
        for part in cut(segment, sink.most):
            numel = part.base.numel()
            if numel <= sink.most:
                self._write(sink.reserve(numel).view(part.base.shape), part)
            else:
                stream_tensor(self._apart(part), sink)

    def whole(self) -> torch.Tensor:
        """All of it, merged and cast."""
        if self._whole is None:
            self._whole = torch.empty(self.shape, dtype=self.dtype)
            for segment in self.segments:
                box = self._whole[segment.index]
                if box.is_contiguous():
                    self._write(box, segment)
                else:
                    box.copy_(self._apart(segment))
        return self._whole

    def _apart(self, segment: Segment) -> torch.Tensor:
        out = torch.empty(segment.base.shape, dtype=self.dtype)
        self._write(out, segment)
        return out

    def _write(self, out: torch.Tensor, segment: Segment) -> None:
        if segment.sources:
            self.merge.write(out, self.name, segment)
        else:
            out.copy_(segment.base)


def _stream_runs(pieces: Sequence[Piece], parameters: Mapping[str, _Parameter], numel: int, sink: Sink) -> bool:
    """Write a disk tensor that is made of segments one after the other; False, and nothing, where it is not.

    A function of its own, so that nothing holds one parameter's segments when the next one's are made.
    """
    runs = _runs(pieces, parameters, numel)
    for parameter, segment in runs or ():
        parameter.stream(segment, sink)
    return runs is not None


def _runs(
    pieces: Sequence[Piece], parameters: Mapping[str, _Parameter], numel: int
) -> list[tuple[_Parameter, Segment]] | None:
    """The segments whose elements follow one another in a disk tensor; None when its layout is another."""
    found = []
    for piece in pieces:
        start = 0 if piece.view is None else _row_major(*piece.view)
        parameter = parameters[piece.parameter]
        tiles = _tiles(parameter.segment_at, _box(piece.index, parameter.shape))
        if start is None or tiles is None:
            return None
        found += [(start + offset, parameter, segment) for offset, segment in tiles]
    found.sort(key=lambda run: run[0])
    return [run[1:] for run in found] if _follow([(run[0], run[2]) for run in found], numel) else None


def _tiles(segment_at: Mapping[Box, Segment], outer: Box) -> list[tuple[int, Segment]] | None:
    """The segments that make up a box, each with its offset there; None when they do not do so in order."""
    if outer in segment_at:  # the rule; a mixture has too many segments to look through for each of them
        return [(0, segment_at[outer])]
    tiles = []
    for inner, segment in segment_at.items():
        if any(lo >= stop or hi <= start for (lo, hi), (start, stop) in zip(inner, outer, strict=True)):
            continue
        offset = _offset(inner, outer)
        if offset is None:
            return None
        tiles.append((offset, segment))
    tiles.sort(key=lambda tile: tile[0])
    return tiles if _follow(tiles, math.prod(stop - start for start, stop in outer)) else None


def _follow(tiles: Sequence[tuple[int, Segment]], numel: int) -> bool:
    """Whether segments at these offsets fill ``numel`` elements without gap or overlap."""
    end = 0
    for offset, segment in tiles:
        if offset != end:
            return False
        end += segment.base.numel()
    return end == numel


def _box(index: tuple[slice, ...], shape: tuple[int, ...]) -> Box:
    full = (*index, *(slice(None) for _ in shape[len(index) :]))
    return tuple(part.indices(size)[:2] for part, size in zip(full, shape, strict=True))


def _offset(inner: Box, outer: Box) -> int | None:
    """Where a box starts within another, in row-major order; None when it is not there in one piece."""
    offset, stride, partial = 0, 1, False
    for (lo, hi), (start, stop) in reversed(list(zip(inner, outer, strict=True))):
        if lo < start or hi > stop or (partial and hi - lo != 1):
            return None
        partial = partial or (lo, hi) != (start, stop)
        offset += (lo - start) * stride
        stride *= stop - start
    return offset


def _row_major(sizes: tuple[int, ...], strides: tuple[int, ...], offset: int) -> int | None:
    """The offset of a strided view whose elements follow one another; None for any other view."""
    wanted = tuple(math.prod(sizes[position + 1 :]) for position in range(len(sizes)))
    return offset if strides == wanted else None
