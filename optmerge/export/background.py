"""Files written by a thread of its own, so that the next values are made while the last ones go to the disk.

The bytes of a file pass through a few buffers that are used again and again: memory does not depend on what is written.

    with BackgroundWriter(hashed=True) as writer:
        writer.open(folder / "model.safetensors", header)
        writer.reserve(4096)[:] = 7           # to be filled before the next call
    writer.digests                            # {path: SHA-256 of what was written to it}
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import torch

BUFFER_BYTES = 1 << 23  # small enough that a buffer is still in the cache when it is written out
_BUFFERS = 3  # one being filled, one being written, one in between


class BackgroundWriter:
    """Writes files one after the other, each from its first to its last byte.

    Args:
        hashed: Keep the SHA-256 of every file in ``digests``.
        buffer_bytes: Size of one buffer, and the most that `reserve` gives.

    Attributes:
        written: Bytes that have reached the operating system, those of `open` not counted.
        digests: Path -> SHA-256, whole once the block has ended.
    """

    def __init__(self, *, hashed: bool = False, buffer_bytes: int = BUFFER_BYTES) -> None:
        self.written = 0
        self.digests: dict[Path, str] = {}
        self.buffer_bytes = buffer_bytes
        self._hashed = hashed
        self._buffer = torch.empty(buffer_bytes, dtype=torch.uint8)
        self._filled = 0
        self._free: queue.SimpleQueue[torch.Tensor] = queue.SimpleQueue()
        for _ in range(_BUFFERS - 1):
            self._free.put(torch.empty(buffer_bytes, dtype=torch.uint8))
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._problem: Exception | None = None
        self._file: IO[bytes] | None = None  # this and what follows belong to the thread
        self._path = Path()
        self._digest = hashlib.sha256()
        self._thread = threading.Thread(target=self._run, name="optmerge-writer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait until all is written; after an exception what is still in a buffer is dropped."""
        if kind is None and self._filled:
            self._jobs.put(partial(self._write, self._buffer, self._filled))
        self._jobs.put(None)
        self._thread.join()
        if kind is None and self._problem is not None:
            raise self._problem

    def open(self, path: Path, head: bytes = b"") -> None:
        """End the file that is being written, and begin ``path`` with some bytes."""
        self._hand_over()
        self._jobs.put(partial(self._begin, path, head))

    def reserve(self, nbytes: int, *, align: int = 1) -> torch.Tensor:
        """The next bytes of the file, uint8[nbytes], to be filled before the next call of any method.

        Args:
            nbytes: At most ``buffer_bytes``.
            align: What the place in memory must be a multiple of; at most 8.

        Raises:
            OSError: What was handed over before could not be written.
        """
        assert nbytes <= self.buffer_bytes, (nbytes, self.buffer_bytes)
        if self._filled + nbytes > self.buffer_bytes or self._filled % align:
            self._hand_over()
        place = self._buffer[self._filled : self._filled + nbytes]
        self._filled += nbytes
        return place

    def _hand_over(self) -> None:
        if self._filled:
            self._jobs.put(partial(self._write, self._buffer, self._filled))
            self._buffer, self._filled = self._free.get(), 0
        if self._problem is not None:
            raise self._problem

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception as problem:  # it is raised where the next bytes are handed over
                self._problem = self._problem or problem
        try:
            self._end()
        except OSError as problem:
            self._problem = self._problem or problem

    def _begin(self, path: Path, head: bytes) -> None:
        self._end()
        self._path, self._file, self._digest = path, path.open("wb"), hashlib.sha256()
        self._put(head)

    def _write(self, buffer: torch.Tensor, filled: int) -> None:
        try:
            if self._problem is None:
                self._put(buffer[:filled].numpy().data)
                self.written += filled
        finally:
            self._free.put(buffer)

    def _put(self, values: bytes | memoryview) -> None:
        assert self._file is not None
        self._file.write(values)
        if self._hashed:
            self._digest.update(values)

    def _end(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            if self._hashed:
                self.digests[self._path] = self._digest.hexdigest()
