"""Jobs for the compiled kernels: addresses of tensors, laid out once, so that a call costs nothing per tensor.

    table = JobTable([(out, base, sources), ...])
    table.set_coefficients(values)               # one per source, in the order of the entries
    library.merge(table.jobs)
    library.merge(table.select(mask))            # of some entries only

The caller keeps the tensors alive for as long as it uses the table.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from optmerge.merging.kernels import JOB, MOST, PIECE, SOURCE, TYPES, Jobs, Library
from optmerge.merging.sources import Source

Entry = tuple[torch.Tensor, torch.Tensor, Sequence[Source]]  # what is written (or a gradient), base, sources


class JobTable:
    """The jobs of some segments, each cut into pieces that threads share out.

    Attributes:
        jobs: All jobs, in the order of the entries.
        entry_of_job: int64[jobs].
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        lengths = np.array([base.numel() for _, base, _ in entries], dtype=np.int64)
        counts = np.array([len(sources) for _, _, sources in entries], dtype=np.int64)
        pieces = -(-lengths // PIECE)
        self.entry_of_job = np.repeat(np.arange(len(entries)), pieces)
        self._first_job = np.concatenate([[0], np.cumsum(pieces)])
        self.jobs = np.zeros(int(pieces.sum()), dtype=JOB)
        self._offsets = (np.arange(len(self.jobs)) - self._first_job[self.entry_of_job]) * PIECE  # in elements
        self._sources = np.zeros(int((pieces * counts).sum()), dtype=SOURCE)
        self._slot = np.zeros(len(self._sources), dtype=np.int64)  # which coefficient each has
        self.jobs["length"] = np.minimum(lengths[self.entry_of_job] - self._offsets, PIECE)
        self.jobs["count"] = counts[self.entry_of_job]
        starts = np.concatenate([[0], np.cumsum(counts[self.entry_of_job])[:-1]]).astype(np.int64)
        self.jobs["sources"] = self._sources.ctypes.data + starts[: len(self.jobs)] * SOURCE.itemsize
        slot = 0
        for number, (out, base, sources) in enumerate(entries):
            mine = slice(int(self._first_job[number]), int(self._first_job[number + 1]))
            offsets = self._offsets[mine]
            self.jobs["base"][mine] = base.data_ptr() + offsets * base.dtype.itemsize
            self.jobs["base_type"][mine] = TYPES[base.dtype]
            rows = self._sources[int(starts[mine.start]) if len(offsets) else 0 :][: len(offsets) * len(sources)]
            for k, source in enumerate(sources):
                column = rows[k :: len(sources)]
                column["data"] = source.tensor.data_ptr() + offsets * source.tensor.dtype.itemsize
                column["type"] = TYPES[source.tensor.dtype]
                column["absolute"] = source.absolute
            first = int(starts[mine.start]) if len(offsets) else 0
            self._slot[first : first + len(rows)] = np.tile(np.arange(slot, slot + len(sources)), len(offsets))
            slot += len(sources)
            self.point(number, out)

    @staticmethod
    def takes(library: Library, out: torch.Tensor, base: torch.Tensor, sources: Sequence[Source]) -> bool:
        """Whether the kernels can do this segment: contiguous tensors in host memory, of types that they know."""
        tensors = [out, base, *(source.tensor for source in sources)]
        return (
            len(sources) <= MOST
            and library.takes(*(tensor.dtype for tensor in tensors))
            and all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors)
        )

    def point(self, entry: int, out: torch.Tensor) -> None:
        """Let an entry's jobs write to (or contract) another tensor of the same shape."""
        mine = slice(int(self._first_job[entry]), int(self._first_job[entry + 1]))
        self.jobs["out"][mine] = out.data_ptr() + self._offsets[mine] * out.dtype.itemsize
        self.jobs["out_type"][mine] = TYPES[out.dtype]

    def set_coefficients(self, values: npt.ArrayLike) -> None:
        """One number per source, in the order of the entries."""
        self._sources["coefficient"] = np.asarray(values, dtype=np.float64)[self._slot]

    def select(self, entries: npt.NDArray[np.bool_]) -> Jobs:
        """The jobs of the entries where the mask is true."""
        return self.jobs if entries.all() else self.jobs[entries[self.entry_of_job]]
