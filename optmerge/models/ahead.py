"""Weights read once, while there is other work: content hash and scan for NaN and Inf in one pass, in threads.

Opening a family imports transformers and maps every tensor; meanwhile its files are read here. What is found goes to
the cache, where `find_nonfinite` and the checkpoints' ``sha256`` look first.

    with read_ahead(checkpoints) as wait:
        ...                                  # configs, maps, checks of headers
        wait()                               # all files are read; from now on asking costs nothing
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from optmerge.models.adapter import AdapterCheckpoint
from optmerge.models.cache import file_sha256, recall, remember
from optmerge.models.checkpoint import Checkpoint, FolderCheckpoint
from optmerge.models.mapped import SafetensorsFile
from optmerge.models.values import is_finite

_CHUNK = 1 << 23  # bytes; smaller ones would wait for the interpreter's lock more often
_THREADS = 4
_EXPONENTS: dict[torch.dtype, tuple[type[np.unsignedinteger[Any]], np.unsignedinteger[Any]]] = {
    torch.float64: (np.uint64, np.uint64(0x7FF0000000000000)),
    torch.float32: (np.uint32, np.uint32(0x7F800000)),
    torch.bfloat16: (np.uint16, np.uint16(0x7F80)),
    torch.float16: (np.uint16, np.uint16(0x7C00)),
}


class _StoppedError(Exception):
    """Nobody waits for the result any more."""


@contextmanager
def read_ahead(checkpoints: Iterable[Checkpoint]) -> Iterator[Callable[[], None]]:
    """Read the safetensors files of some checkpoints in threads for as long as the block lasts.

    Files whose hash is known already are not read. Yields a function that waits until all is read.
    """
    stop = threading.Event()
    plain = [c.base if isinstance(c, AdapterCheckpoint) else c for c in checkpoints]
    folders = {c.folder: c for c in plain if isinstance(c, FolderCheckpoint)}
    threads = max(1, min(_THREADS, (os.cpu_count() or 1) - 1))  # one core is left to what goes on meanwhile
    pool = ThreadPoolExecutor(threads, thread_name_prefix="optmerge-ahead")
    jobs = [pool.submit(_read, checkpoint, stop) for checkpoint in folders.values()]

    def wait() -> None:
        for job in jobs:
            job.result()

    try:
        yield wait
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _read(checkpoint: FolderCheckpoint, stop: threading.Event) -> None:
    files = [file for file in checkpoint.files if isinstance(file, SafetensorsFile)]
    digests: dict[Path, str] = {}
    bad: set[tuple[Path, str]] = set()
    scanned: list[Path] = []

    def digest(file: SafetensorsFile, path: Path) -> str:
        found = _digest_and_scan(file, bad, stop)
        scanned.append(path)
        return found

    with suppress(_StoppedError):
        for file in files:
            digests[file.path] = file_sha256(file.path, compute=partial(digest, file))
        checkpoint.adopt(digests)
        if len(scanned) == len(checkpoint.files) and recall("values", checkpoint.sha256()) is None:
            found = [name for name, info in checkpoint.tensors.items() if (info.file, name) in bad]
            remember("values", checkpoint.sha256(), {"nonfinite": found})


def _digest_and_scan(file: SafetensorsFile, bad: set[tuple[Path, str]], stop: threading.Event) -> str:
    """The SHA-256 of a file; which tensors hold NaN or Inf is added to ``bad``."""
    digest = hashlib.sha256(file.head())
    masked = np.empty(_CHUNK, dtype=np.uint8)
    for name, info in file.tensors.items():  # in the file's order, without a gap
        raw = file.raw(name).numpy()
        for lo in range(0, len(raw), _CHUNK):
            if stop.is_set():
                raise _StoppedError
            chunk = raw[lo : lo + _CHUNK]
            digest.update(chunk.data)
            if not _is_finite(chunk, info.dtype, masked):
                bad.add((file.path, name))
    return digest.hexdigest()


def _is_finite(chunk: npt.NDArray[np.uint8], dtype: torch.dtype, masked: npt.NDArray[np.uint8]) -> bool:
    """Whether no value among these bytes has all bits of its exponent set, as NaN and Inf have.

    In numpy, not in torch: its operations stay on this thread, and take the interpreter's lock only twice.
    """
    if not dtype.is_floating_point:
        return True
    if dtype not in _EXPONENTS:  # 8-bit types, each with rules of its own
        return is_finite(torch.frombuffer(bytearray(chunk), dtype=dtype))
    kind, exponent = _EXPONENTS[dtype]
    values = chunk.view(kind)
    out = masked.view(kind)[: len(values)]
    np.bitwise_and(values, exponent, out=out)
    return bool(out.max() != exponent)
