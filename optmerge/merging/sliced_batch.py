"""Many sliced parameters in one call of the compiled kernels: what `batch` is for parameters with one coefficient.

    batch = SlicedBatch(library, parameters, segments, group_of, cuts)
    batch.merge(table, {"embeddings.weight": tensor})      # float64[G, D]; those of the named parameters that are here
    batch.contract(gradients, out)                         # out[G, D] += <gradient, delta> of every slice

The layouts are made once. Between calls only coefficients change, and where parameters or gradients lie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from optmerge.merging.coefficients import Table
from optmerge.merging.jobs import JobTable
from optmerge.merging.kernels import PIECE, SLICED_JOB, SLICED_SOURCE, STRIP, TYPES, Library
from optmerge.merging.slices import Cut, Piece
from optmerge.merging.sources import LowRank, Segment, Source

LAYERS = 64  # most jobs of a contraction that may add to the same slice


class _Run(NamedTuple):
    """Elements of a parameter that follow one another: where they begin, the base's values, and the deltas."""

    parameter: int
    offset: int
    base: torch.Tensor
    sources: dict[int, Source]


class SlicedBatch:
    """The sliced parameters that the kernels can do.

    Args:
        library: The kernels; None leaves the batch empty.
        parameters: The resident parameters by name.
        segments: Name -> its segments.
        group_of: Name -> the first row of the coefficient table.
        cuts: Name -> how it is cut; only these parameters are looked at.
        columns: Which directions are contracted; None is for merging.
    """

    def __init__(
        self,
        library: Library | None,
        parameters: Mapping[str, nn.Parameter],
        segments: Callable[[str], list[Segment]],
        group_of: Mapping[str, int],
        cuts: Mapping[str, Cut],
        *,
        columns: Sequence[int] | None = None,
    ) -> None:
        self._library = library
        self._numbers: dict[str, int] = {}
        self._rows: list[slice] = []
        layout = _Layout()
        for name, cut in cuts.items() if library is not None else ():
            assert library is not None
            parameter = parameters[name].data
            runs = _runs(library, parameter, segments(name), len(self._numbers), columns)
            if runs is None:
                continue
            jobs = _contractions if columns is not None else _merges
            if layout.add(runs, cut, group_of[name], jobs):
                self._numbers[name] = len(self._numbers)
                self._rows.append(slice(group_of[name], group_of[name] + cut.count))
        self._layout = layout
        layout.close()

    def __contains__(self, name: str) -> bool:
        return name in self._numbers

    def merge(self, table: Table, parameters: Mapping[str, torch.Tensor]) -> None:
        """Write the merge into those of the parameters that are in the batch."""
        jobs = self._point(parameters)
        if self._library is None or not len(jobs):
            return
        values = np.ascontiguousarray(table.T, dtype=np.float32)
        used = np.stack([np.atleast_1d(table[rows].any(axis=0)) for rows in self._rows])
        layout = self._layout
        addresses = values.ctypes.data + 4 * (layout.direction * values.shape[1] + layout.group)
        layout.sources["slices"] = np.where(used[layout.owner, layout.direction], addresses, 0)
        self._library.merge_sliced(jobs)

    def contract(self, gradients: Mapping[str, torch.Tensor], out: torch.Tensor) -> None:
        """Add every slice's scalar products to ``out`` [G, D], fp64 on the CPU, for gradients that are in the batch."""
        jobs = self._point(gradients)
        if self._library is None or not len(jobs):
            return
        layout = self._layout
        chosen = [self._rows[number] for name, number in self._numbers.items() if name in gradients]
        lo, hi = min(rows.start for rows in chosen), max(rows.stop for rows in chosen)
        into = out.numpy()[lo:hi]
        groups, directions = into.shape
        sums = np.zeros((layout.layers, directions, groups))
        at = (layout.layer * directions + layout.direction) * groups + layout.group - lo
        layout.sources["slices"] = sums.ctypes.data + 8 * at
        self._library.contract_sliced(jobs)
        for layer in sums:  # always in this order, whoever did the jobs
            into += layer.T

    def _point(self, tensors: Mapping[str, torch.Tensor]) -> npt.NDArray[np.void]:
        """Aim the jobs at these tensors; the jobs of those that are in the batch."""
        data = np.zeros(len(self._numbers), dtype=np.uint64)
        width, kind = np.zeros((2, len(self._numbers)), dtype=np.int64)
        for name, tensor in tensors.items():
            if name in self._numbers:
                assert tensor.is_contiguous()
                number = self._numbers[name]
                data[number], width[number], kind[number] = tensor.data_ptr(), tensor.itemsize, TYPES[tensor.dtype]
        layout = self._layout
        layout.jobs["out"] = data[layout.parameter] + (layout.element * width[layout.parameter]).astype(np.uint64)
        layout.jobs["out_type"] = kind[layout.parameter]
        jobs: npt.NDArray[np.void] = layout.jobs[data[layout.parameter] > 0]
        return jobs


class _Layout:
    """The jobs of a batch: what never changes, and what coefficients and sums are found by.

    Attributes:
        jobs: All jobs.
        parameter: int64[jobs], whose.
        element: int64[jobs], its first element in the parameter.
        sources: Those of all jobs, one job after the other.
        owner: int64[sources], whose.
        direction: int64[sources].
        group: int64[sources], the table's row of the job's first slice.
        layer: int64[sources]: jobs that share slices are in different ones.
    """

    def __init__(self) -> None:
        self._jobs: list[tuple[int, ...]] = []
        self._sources: list[tuple[int, ...]] = []
        self._where: list[tuple[int, int]] = []
        self._found_by: list[tuple[int, int, int, int]] = []
        self.layers = 1

    def add(
        self, runs: Sequence[_Run], cut: Cut, first: int, jobs: Callable[[_Run, Cut], Iterator[tuple[Piece, int, int]]]
    ) -> bool:
        """Add a parameter's jobs; False, and nothing is added, where too many of them would share slices."""
        shared = np.zeros(cut.count, dtype=np.int64)
        found: list[tuple[_Run, Piece, int, int, int]] = []
        for run in runs:
            for piece, column, width in jobs(run, cut):
                start = piece.first + column if piece.across else piece.first
                mine = slice(start, start + (width if piece.across else piece.rows))
                layer = int(shared[mine].max())
                shared[mine] = layer + 1
                found.append((run, piece, column, width, layer))
        if jobs is _contractions:
            if shared.max(initial=0) > LAYERS:
                return False
            self.layers = max(self.layers, int(shared.max(initial=0)))
        for run, piece, column, width, layer in found:
            element = piece.lo + column
            position = element - run.offset
            base = run.base.data_ptr() + position * run.base.itemsize
            head = (0, base, len(self._sources), piece.rows, width, piece.width, 0, TYPES[run.base.dtype])
            self._jobs.append((*head, len(run.sources), int(piece.across)))
            self._where.append((run.parameter, element))
            group = first + piece.first + (column if piece.across else 0)
            for direction, source in run.sources.items():
                tensor = source.tensor
                address = tensor.data_ptr() + position * tensor.itemsize
                self._sources.append((address, TYPES[tensor.dtype], int(source.absolute), 0))
                self._found_by.append((run.parameter, direction, group, layer))
        return True

    def close(self) -> None:
        """No more is added: make the arrays."""
        self.jobs = np.array(self._jobs, dtype=SLICED_JOB)
        self.sources = np.array(self._sources, dtype=SLICED_SOURCE)
        self.jobs["sources"] = self.sources.ctypes.data + self.jobs["sources"] * SLICED_SOURCE.itemsize
        self.parameter, self.element = np.array(self._where, dtype=np.int64).reshape(-1, 2).T
        self.owner, self.direction, self.group, self.layer = np.array(self._found_by, dtype=np.int64).reshape(-1, 4).T
        del self._jobs, self._sources, self._where, self._found_by


def _runs(
    library: Library, parameter: torch.Tensor, segments: Sequence[Segment], number: int, columns: Sequence[int] | None
) -> list[_Run] | None:
    """A parameter's runs with the directions that they have sources for; None where the kernels cannot do them."""
    runs = []
    for segment in segments:
        wanted = range(len(segment.sources)) if columns is None else columns
        if segment.temporary or any(isinstance(segment.sources[column], LowRank) for column in wanted):
            return None
        for run in segment.runs():
            sources = {column: source for column in wanted if isinstance(source := run.sources[column], Source)}
            if not JobTable.takes(library, parameter, run.base, list(sources.values())):
                return None
            runs.append(_Run(number, run.offset, run.base, sources))
    return runs


def _merges(run: _Run, cut: Cut) -> Iterator[tuple[Piece, int, int]]:
    """Jobs of a merge: pieces that threads share out."""
    for piece in cut.pieces(run.offset, run.offset + run.base.numel(), PIECE):
        yield piece, 0, piece.width


def _contractions(run: _Run, cut: Cut) -> Iterator[tuple[Piece, int, int]]:
    """Jobs of a contraction: strips of columns, or pieces of rows."""
    for piece in cut.pieces(run.offset, run.offset + run.base.numel(), run.base.numel() or 1):
        if not piece.across:
            yield from ((part, 0, part.width) for part in cut.pieces(piece.lo, piece.hi, PIECE))
        else:
            yield from ((piece, lo, min(STRIP, piece.width - lo)) for lo in range(0, piece.width, STRIP))
