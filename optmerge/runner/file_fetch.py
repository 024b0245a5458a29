"""Files fetched from the machine that searches (`optmerge.runner.file_server`), or the rest of them.

    fetcher = Fetcher(source)
    with open("model.part", "r+b") as part:          # empty, or what an earlier fetch has left
        fetcher.complete(part, sha256, size, "base/model.safetensors")

The hash is made while the bytes stream, and of what is there already before the rest is asked for. Where it is not the
one that was asked for, all is fetched once more.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import time
from collections.abc import Iterator
from contextlib import closing
from typing import IO

from optmerge.errors import RunError
from optmerge.runner.file_server import Source

log = logging.getLogger(__name__)

CHUNK = 1 << 20  # bytes
TRIES = 6  # in a row that bring nothing
PAUSE = 0.5  # seconds before the second try; twice as many before each that follows
TIMEOUT = 60.0  # seconds without a byte
_REFUSALS = {
    401: "it serves another run",
    404: "it does not serve this file any more",
    409: "the file has changed there, or is gone, since the search began. Put the original back, and resume",
}


class _BrokenOffError(Exception):
    """The connection is of no use any more."""


class Fetcher:
    """Fetches files, one after the other over one connection.

    Args:
        source: Where they are.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._buffer = memoryview(bytearray(CHUNK))
        self._connection = http.client.HTTPConnection(source.host, source.port, timeout=TIMEOUT)

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def complete(self, part: IO[bytes], sha256: str, size: int, name: str) -> None:
        """Fetch what a file lacks, and sync it to disk.

        Args:
            part: Open for reading and writing; what it holds is kept as far as it is right.
            sha256: Of the whole content.
            size: Of the whole content, in bytes.
            name: What to call it in messages.

        Raises:
            RunError: The other side does not have it, or it arrived damaged twice.
            ConnectionError: The other side cannot be reached, or not for long enough to bring anything.
        """
        if os.fstat(part.fileno()).st_size > size:
            part.truncate(0)
        for _ in range(2):
            if self._rest(part, sha256, size, name) == sha256:
                part.flush()
                os.fsync(part.fileno())
                return
            log.error("%s arrived damaged, and is fetched again", name)
            part.seek(0)
            part.truncate(0)
        raise RunError(
            f"{name} arrived damaged twice from {self._where}: its content has another hash there. See whether the "
            "disks of both machines are sound, and resume."
        )

    @property
    def _where(self) -> str:
        return f"{self._source.host}:{self._source.port}"

    def _rest(self, part: IO[bytes], sha256: str, size: int, name: str) -> str:
        """Bring a file to its size; the hash of what it holds then."""
        digest = hashlib.sha256()
        part.seek(0)
        while chunk := part.read(CHUNK):
            digest.update(chunk)
        failures = 0
        while (before := part.tell()) < size:
            why = "it sent nothing more"
            try:
                for piece in self._received(sha256, before, name):
                    part.write(piece)
                    digest.update(piece)
            except _BrokenOffError as problem:
                why = str(problem)
            if part.tell() >= size:
                break
            self._connection.close()
            failures = failures + 1 if part.tell() == before else 1
            if failures == TRIES:
                raise ConnectionError(
                    f"{name} cannot be fetched from {self._where}, where the search runs ({why}). See whether a "
                    "firewall keeps this machine from that address."
                )
            time.sleep(PAUSE * 2 ** (failures - 1))
        return digest.hexdigest()

    def _received(self, sha256: str, begin: int, name: str) -> Iterator[memoryview]:
        """A file's bytes from one on; they may end too early. Each piece is overwritten by the next."""
        headers = {"Authorization": f"Bearer {self._source.token}"}
        if begin:
            headers["Range"] = f"bytes={begin}-"
        try:
            self._connection.request("GET", f"/{sha256}", headers=headers)
            with closing(self._connection.getresponse()) as response:
                if response.status in _REFUSALS:
                    raise RunError(f"{name} cannot be fetched from {self._where}: {_REFUSALS[response.status]}.")
                if response.status != (206 if begin else 200):
                    raise _BrokenOffError(f"it answered {response.status}")
                while count := response.readinto(self._buffer):
                    yield self._buffer[:count]
        except (http.client.HTTPException, OSError) as problem:
            raise _BrokenOffError(f"{type(problem).__name__}: {problem}") from None
