"""Weight files as lazily read tensors: safetensors mapped without a copy, and pickles when they are allowed.

A mapped file that is shorter than its header says would kill the process at the first touch (SIGBUS), so header and
length are compared before anything is mapped.

    file = SafetensorsFile(Path("zoo/base/model.safetensors"))   # reads the header only
    file.tensors["model.norm.weight"].shape
    file.read("model.norm.weight")                               # a view of the map; never write to it
"""

from __future__ import annotations

import json
import math
import mmap
import pickle
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import torch

from optmerge.errors import ModelError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
_AGAIN = "Download or copy it again."


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor on disk: everything but its values."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    nbytes: int
    file: Path

    @property
    def numel(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)


class WeightFile(Protocol):
    """One file of tensors."""

    path: Path
    tensors: Mapping[str, TensorInfo]

    def read(self, name: str) -> torch.Tensor:
        """A tensor on the CPU, mapped where the file allows; never write to it."""


class SafetensorsFile:
    """A safetensors file: its header is read at once, its tensors are views of one read-only map.

    Raises:
        ModelError: The file is missing, truncated or damaged; expected and found bytes are named.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        header, self._start, size = _read_header(path)
        self._ranges: dict[str, tuple[int, int]] = {}
        tensors: dict[str, TensorInfo] = {}
        ordered = sorted(header.items(), key=lambda item: _offsets(path, *item))
        end = 0
        for name, entry in ordered:
            tensors[name] = info = _tensor_info(path, name, entry)
            lo, hi = _offsets(path, name, entry)
            if lo != end or hi - lo != info.nbytes:
                raise ModelError(
                    f"{path} is damaged: its header puts the tensor {name} at bytes {lo} to {hi}, where bytes {end} to "
                    f"{end + info.nbytes} were expected. {_AGAIN}"
                )
            self._ranges[name] = (lo, hi)
            end = hi
        if self._start + end != size:
            state = "truncated" if size < self._start + end else "damaged"
            raise ModelError(
                f"{path} is {state}: its header describes {self._start + end:,} bytes and the file has {size:,}. "
                f"{_AGAIN}"
            )
        self.tensors: Mapping[str, TensorInfo] = tensors
        self._size = size
        self._bytes: torch.Tensor | None = None
        self._views: dict[str, torch.Tensor] = {}

    def read(self, name: str) -> torch.Tensor:
        """A tensor as a view of the mapped file; never write to it."""
        if name not in self._views:
            info, (lo, hi) = self.tensors[name], self._ranges[name]
            if lo == hi:
                return torch.empty(info.shape, dtype=info.dtype)
            raw = self.raw(name)
            if (self._start + lo) % info.dtype.itemsize:
                return raw.clone().view(info.dtype).reshape(info.shape)  # misaligned: cannot be viewed in place
            self._views[name] = raw.view(info.dtype).reshape(info.shape)
        return self._views[name]

    def head(self) -> bytes:
        """Everything before the first tensor's bytes."""
        return self._mapped()[: self._start].numpy().tobytes()

    def raw(self, name: str) -> torch.Tensor:
        """A tensor's bytes, uint8, a view of the mapped file; never write to it."""
        lo, hi = self._ranges[name]
        return self._mapped()[self._start + lo : self._start + hi]

    def _mapped(self) -> torch.Tensor:
        if self._bytes is None:
            with self.path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if len(mapped) != self._size:
                raise ModelError(
                    f"{self.path} changed while it was in use: it had {self._size:,} bytes and now has "
                    f"{len(mapped):,}. Start again once nothing writes to it."
                )
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The given buffer is not writable", category=UserWarning)
                self._bytes = torch.frombuffer(mapped, dtype=torch.uint8)
        return self._bytes


class PickleFile:
    """A ``pytorch_model.bin``, opened with torch's restricted unpickler and mapped where its format allows.

    Raises:
        ModelError: The file is missing or damaged, or holds something else than tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        loaded = _load_pickle(path)
        if not isinstance(loaded, Mapping) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
            raise ModelError(f"{path} is not a dictionary of tensors. Save the model again with save_pretrained.")
        self._tensors: dict[str, torch.Tensor] = dict(loaded)
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(name, tuple(value.shape), value.dtype, value.numel() * value.dtype.itemsize, path)
            for name, value in self._tensors.items()
        }

    def read(self, name: str) -> torch.Tensor:
        """A tensor; never write to it."""
        return self._tensors[name].detach()


def _load_pickle(path: Path) -> Any:
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as problem:
            if "mmap can only be used with files saved with" not in str(problem):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)  # the format of torch before 1.6
    except FileNotFoundError:
        raise ModelError(f"The weight file {path} is missing. {_AGAIN}") from None
    except (RuntimeError, EOFError, OSError, BadZipFile, pickle.UnpicklingError) as problem:
        first = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        size = path.stat().st_size
        raise ModelError(f"{path} ({size:,} bytes) cannot be read as PyTorch weights: {first} {_AGAIN}") from None


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The header's tensors, where the data starts, and the file's length."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(8)
            length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
            raw = file.read(length) if 0 < length <= size - 8 else b""
    except FileNotFoundError:
        raise ModelError(f"The weight file {path} is missing. {_AGAIN}") from None
    except OSError as problem:
        raise ModelError(f"{path} cannot be read: {problem.strerror}.") from None
    if len(first) < 8 or length > size - 8:
        expected = f"at least {8 + length:,}" if len(first) == 8 else "at least 8"
        pointer = " It is a Git LFS pointer: run `git lfs pull` in its folder." if _is_pointer(path) else ""
        raise ModelError(
            f"{path} is truncated or not a safetensors file: expected {expected} bytes, found {size:,}."
            f"{pointer or ' ' + _AGAIN}"
        )
    try:
        header = json.loads(raw)
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise ModelError(f"{path} is damaged: the {length:,} bytes of its header are not JSON. {_AGAIN}")
    header.pop("__metadata__", None)
    return header, 8 + length, size


def _is_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(40).startswith(b"version https://git-lfs")


def _offsets(path: Path, name: str, entry: Any) -> tuple[int, int]:
    try:
        lo, hi = entry["data_offsets"]
        return int(lo), int(hi)
    except (KeyError, TypeError, ValueError):
        raise ModelError(f"{path} is damaged: its header has no offsets for the tensor {name}. {_AGAIN}") from None


def _tensor_info(path: Path, name: str, entry: Any) -> TensorInfo:
    try:
        shape = tuple(int(size) for size in entry["shape"])
        code = str(entry["dtype"])
    except (KeyError, TypeError, ValueError):
        raise ModelError(f"{path} is damaged: its header has no shape for the tensor {name}. {_AGAIN}") from None
    if code not in DTYPES:
        raise ModelError(
            f"{path} stores the tensor {name} as {code}, which optmerge does not read ({', '.join(DTYPES)} are). "
            "Use a checkpoint that is not quantized."
        )
    dtype = DTYPES[code]
    return TensorInfo(name, shape, dtype, math.prod(shape) * dtype.itemsize, path)
