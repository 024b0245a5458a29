"""A safetensors writer that takes its tensors chunk by chunk, whatever their size.

The format wants its header first, so names, shapes and types are declared before any value; the tensors then follow in
the declared order. What does not fit into one file goes into shards, which want an index beside them.

    with ShardedWriter(folder, specs, shard_bytes=5 * 10**9) as writer:
        writer.begin("model.norm.weight")             # in the order of specs
        writer.reserve(4096).copy_(values)            # at most writer.most at once, until the tensor is whole
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from optmerge.export.background import BUFFER_BYTES, BackgroundWriter

SHARD_BYTES = 5 * 10**9
INDEX = "model.safetensors.index.json"

DTYPE_CODES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a tensor will be.

    >>> TensorSpec("w", (2, 3), torch.bfloat16).nbytes
    12
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


def plan_shards(specs: Sequence[TensorSpec], shard_bytes: int = SHARD_BYTES) -> list[list[TensorSpec]]:
    """Cut a list of tensors into shards of at most ``shard_bytes`` (a bigger tensor has a shard of its own)."""
    shards: list[list[TensorSpec]] = [[]]
    filled = 0
    for spec in specs:
        if shards[-1] and filled + spec.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(spec)
        filled += spec.nbytes
    return shards


def shard_name(index: int, count: int) -> str:
    """The name that transformers gives shard ``index`` (from 0) of ``count``.

    >>> shard_name(0, 1), shard_name(0, 3)
    ('model.safetensors', 'model-00001-of-00003.safetensors')
    """
    return "model.safetensors" if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def named_shards(specs: Sequence[TensorSpec], shard_bytes: int = SHARD_BYTES) -> list[tuple[str, list[TensorSpec]]]:
    """The files that hold the tensors: name and tensors of each."""
    shards = plan_shards(specs, shard_bytes)
    return [(shard_name(index, len(shards)), shard) for index, shard in enumerate(shards)]


def index_json(shards: Sequence[tuple[str, Sequence[TensorSpec]]]) -> str:
    """The index of (file name, its tensors) pairs."""
    return json.dumps(
        {
            "metadata": {"total_size": sum(spec.nbytes for _, specs in shards for spec in specs)},
            "weight_map": {spec.name: file for file, specs in shards for spec in specs},
        },
        indent=1,
    )


class ShardedWriter:
    """Writes declared tensors, in their order, into ``folder``.

    Args:
        folder: Exists already.
        specs: Every tensor, in the order in which `begin` will be called.
        shard_bytes: Most bytes of values in one file.
        hashed: Keep the SHA-256 of every file in ``digests``.
        wrote: Called with the number of bytes of values written since it was called last.
        buffer_bytes: Size of each of the few buffers that values pass through.

    Attributes:
        shards: The files' names, each with its tensors.
        digests: File name -> SHA-256 of what was written, whole once the block has ended.
    """

    def __init__(
        self,
        folder: Path,
        specs: Sequence[TensorSpec],
        *,
        shard_bytes: int = SHARD_BYTES,
        hashed: bool = False,
        wrote: Callable[[int], None] | None = None,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        self.folder = folder
        self.shards = named_shards(specs, shard_bytes)
        self.digests: dict[str, str] = {}
        self._wrote = wrote
        self._told = 0
        self._due = [(file, shard, spec) for file, shard in self.shards for spec in shard]
        self._next = 0
        self._left = 0  # elements of the current tensor that are not reserved yet
        self._current = TensorSpec("", (), torch.uint8)
        self._open_name: str | None = None
        self._files = BackgroundWriter(hashed=hashed, buffer_bytes=buffer_bytes)

    def __enter__(self) -> Self:
        self._files.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and not self._due:
            self._files.open(self.folder / self.shards[0][0], _header([]))
        self._files.__exit__(kind, problem, trace)
        if kind is not None:
            return
        self._tell()
        absent = len(self._due) - self._next
        assert absent == self._left == 0, f"{absent} declared tensors were not written, {self._left} values of the last"
        self.digests = {path.name: digest for path, digest in self._files.digests.items()}

    @property
    def most(self) -> int:
        """Most elements that `reserve` gives of the current tensor."""
        return self._files.buffer_bytes // self._current.dtype.itemsize

    def begin(self, name: str) -> None:
        """Begin the next declared tensor.

        Args:
            name: Must be the next name.
        """
        assert self._left == 0, f"{self._left} values of {self._current.name} are not written"
        file, shard, self._current = self._due[self._next]
        assert name == self._current.name, (name, self._current)
        if file != self._open_name:
            self._files.open(self.folder / file, _header(shard))
            self._open_name = file
        self._next += 1
        self._left = math.prod(self._current.shape)

    def reserve(self, count: int) -> torch.Tensor:
        """The next ``count`` elements of the current tensor, flat, to be filled before the next call of any method.

        Raises:
            OSError: What was written before did not reach the disk.
        """
        assert count <= self._left, (count, self._left, self._current)
        self._left -= count
        dtype = self._current.dtype
        place = self._files.reserve(count * dtype.itemsize, align=dtype.itemsize)
        self._tell()
        return place.view(dtype)

    def _tell(self) -> None:
        written = self._files.written
        if self._wrote and written > self._told:
            self._wrote(written - self._told)
        self._told = written


def _header(specs: Sequence[TensorSpec]) -> bytes:
    """The length of the header (u64, little endian) and the header itself, padded to 8 bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for spec in specs:
        start, end = end, end + spec.nbytes
        header[spec.name] = {"dtype": DTYPE_CODES[spec.dtype], "shape": list(spec.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
