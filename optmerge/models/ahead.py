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

from optmerge.models.adapter import AdapterCheckpoint
from optmerge.models.cache import file_sha256, recall, remember
from optmerge.models.checkpoint import Checkpoint, FolderCheckpoint
from optmerge.models.mapped import SafetensorsFile
from optmerge.models.values import is_finite

_CHUNK = 1 << 22  # bytes: still in the cache when they are looked at the second time
_THREADS = 4


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
    for name, info in file.tensors.items():  # in the file's order, without a gap
        raw = file.raw(name)
        aligned = raw.data_ptr() % info.dtype.itemsize == 0
        for lo in range(0, raw.numel(), _CHUNK):
            if stop.is_set():
                raise _StoppedError
            chunk = raw[lo : lo + _CHUNK]
            digest.update(chunk.numpy().data)
            if (file.path, name) not in bad and not is_finite((chunk if aligned else chunk.clone()).view(info.dtype)):
                bad.add((file.path, name))
    return digest.hexdigest()
