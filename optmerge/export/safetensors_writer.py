"""A safetensors writer that needs one tensor in memory at a time.

The format wants its header first, so names, shapes and types are declared before any value; the tensors then follow in
the declared order. What does not fit into one file goes into shards with an index, as transformers reads them.

    with ShardedWriter(folder, specs, shard_bytes=5 * 10**9) as writer:
        for name, tensor in tensors:         # in the order of specs
            writer.write(name, tensor)
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import torch

SHARD_BYTES = 5 * 10**9
INDEX = "model.safetensors.index.json"
_PIECE = 1 << 26  # bytes handed to the operating system at once, so that progress moves within big tensors

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
        specs: Every tensor, in the order in which `write` will be called.
        shard_bytes: Most bytes of values in one file.
        wrote: Called with the number of bytes just written.
    """

    def __init__(
        self,
        folder: Path,
        specs: Sequence[TensorSpec],
        *,
        shard_bytes: int = SHARD_BYTES,
        wrote: Callable[[int], None] | None = None,
    ) -> None:
        self.folder = folder
        shards = plan_shards(specs, shard_bytes)
        self.shards = [(shard_name(index, len(shards)), shard) for index, shard in enumerate(shards)]
        self._wrote = wrote
        self._due = [(file, specs, spec) for file, specs in self.shards for spec in specs]
        self._next = 0
        self._open_name: str | None = None
        self._handle: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        if kind is not None:
            return
        assert self._next == len(self._due), f"{len(self._due) - self._next} declared tensors were not written"
        if not self._due:
            _write_header(self.folder / self.shards[0][0], []).close()
        if len(self.shards) > 1:
            (self.folder / INDEX).write_text(index_json(self.shards), encoding="utf-8")

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Append the next declared tensor.

        Args:
            name: Must be the next name.
            tensor: CPU, of the declared shape and dtype.
        """
        file, specs, spec = self._due[self._next]
        assert (name, tuple(tensor.shape), tensor.dtype) == (spec.name, spec.shape, spec.dtype), (name, spec)
        if file != self._open_name:
            self._close()
            self._handle, self._open_name = _write_header(self.folder / file, specs), file
        assert self._handle is not None
        values = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
        for lo in range(0, len(values), _PIECE):
            self._handle.write(values[lo : lo + _PIECE])
            if self._wrote:
                self._wrote(min(_PIECE, len(values) - lo))
        self._next += 1

    def _close(self) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None


def _write_header(path: Path, specs: Sequence[TensorSpec]) -> IO[bytes]:
    """Open ``path`` and write the length of the header (u64, little endian) and the header, padded to 8 bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for spec in specs:
        start, end = end, end + spec.nbytes
        header[spec.name] = {"dtype": DTYPE_CODES[spec.dtype], "shape": list(spec.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    handle = open(path, "wb")  # noqa: SIM115 - the caller closes it
    handle.write(struct.pack("<Q", len(text)) + text)
    return handle
