"""Many parameters in one call of the compiled kernels.

Holds the layout (`JobTable`) of every parameter whose segments the kernels can do; the engine does the others one by
one. What changes between calls is only the coefficients, and where gradients lie.

    batch = Batch(library, parameters, segments, group_of)
    batch.merge(table, {"embeddings.weight": tensor})      # float64[G, D]; those of the named parameters that are here
    batch.contract(gradients, out)                         # out[G, D] += <gradient, delta>
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from optmerge.merging.coefficients import Table
from optmerge.merging.jobs import Entry, JobTable
from optmerge.merging.kernels import Library
from optmerge.merging.sources import LowRank, Segment, Source


class Batch:
    """The parameters among ``parameters`` that one call of the kernels can do.

    Args:
        library: The kernels; None leaves the batch empty.
        parameters: The resident parameters by name.
        segments: Name -> its segments.
        group_of: Name -> row of the coefficient table.
        columns: Which directions count; None is all.
    """

    def __init__(
        self,
        library: Library | None,
        parameters: Mapping[str, nn.Parameter],
        segments: Callable[[str], list[Segment]],
        group_of: Mapping[str, int],
        *,
        columns: Sequence[int] | None = None,
    ) -> None:
        self._library = library
        self._entries: dict[str, list[int]] = {}  # parameter -> its entries in the table
        self._index: list[tuple[slice, ...]] = []
        entries: list[Entry] = []
        groups: list[int] = []  # of every source of every entry
        directions: list[int] = []
        for name, parameter in parameters.items() if library is not None else ():
            made = [_entry(parameter.data, segment, columns) for segment in segments(name)]
            if library is None or not all(
                entry is not None and JobTable.takes(library, entry[0], entry[1], entry[2]) for entry, _ in made
            ):
                continue
            self._entries[name] = list(range(len(entries), len(entries) + len(made)))
            for (entry, used), segment in zip(made, segments(name), strict=True):
                assert entry is not None
                entries.append(entry)
                self._index.append(segment.index)
                groups += [group_of[name]] * len(used)
                directions += used
        self._group, self._direction = np.array(groups, dtype=np.int64), np.array(directions, dtype=np.int64)
        counts = np.array([len(sources) for _, _, sources in entries], dtype=np.int64)
        self._counts, self._first = counts, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._table = JobTable(entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def merge(self, table: Table, parameters: Mapping[str, torch.Tensor]) -> None:
        """Write the merge into those of the parameters that are in the batch."""
        chosen = self._point(parameters)
        if self._library is not None and chosen.any():
            self._table.set_coefficients(table[self._group, self._direction])
            self._library.merge(self._table.select(chosen))

    def contract(self, gradients: Mapping[str, torch.Tensor], out: torch.Tensor) -> None:
        """out[group, direction] += <gradient, delta> for the gradients whose parameters are in the batch."""
        chosen = self._point(gradients)
        if self._library is None or not chosen.any() or not self._counts.any():
            return
        width = int(self._counts.max())
        partials = self._library.contract(self._table.select(chosen), width)
        sums = np.zeros((len(chosen), width))
        owners = self._table.entry_of_job[chosen[self._table.entry_of_job]]
        np.add.at(sums, owners, partials)  # in the order of the jobs, whoever did them
        used = np.arange(width)[None, :] < self._counts[:, None]
        np.add.at(out.numpy(), (self._group, self._direction), sums[used])

    def _point(self, tensors: Mapping[str, torch.Tensor]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Aim the jobs at these tensors; which entries they are."""
        chosen = np.zeros(len(self._index), dtype=np.bool_)
        for name, tensor in tensors.items():
            for number in self._entries.get(name, ()):
                part = tensor[self._index[number]]
                assert part.is_contiguous()
                self._table.point(number, part)
                chosen[number] = True
        return chosen


def _entry(value: torch.Tensor, segment: Segment, columns: Sequence[int] | None) -> tuple[Entry | None, list[int]]:
    """A segment as an entry with the directions that it has sources for; None where the kernels cannot do it."""
    wanted = range(len(segment.sources)) if columns is None else columns
    used = [column for column in wanted if segment.sources[column] is not None]
    sources = [segment.sources[column] for column in used]
    if segment.temporary or any(isinstance(source, LowRank) for source in sources):
        return None, used
    dense = [source for source in sources if isinstance(source, Source)]
    return (value[segment.index], segment.base, dense), used
