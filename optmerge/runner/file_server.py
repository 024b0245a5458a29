"""Files served to the machines of a search's workers, out of a thread of the process that searches.

    with closing(FileServer("10.0.0.1")) as server:
        sha256, size = server.register(Path("/models/base/model.safetensors"))
        server.source                                  # what a worker's machine is told: where, and the run's token

It gives out what was registered, by the hash of its content and by nothing else, to who has the token: random, new
with every run, and compared in constant time. ``GET /SHA256`` answers with the file, with ``Range: bytes=N-`` from
there on, so that a fetch that broke off goes on. Several are served at the same time, by the system's sendfile: no file
is read into memory. What is said is not encrypted, as nothing is that Ray's processes say to one another by default.
"""

from __future__ import annotations

import hmac
import logging
import os
import re
import secrets
import socket
import socketserver
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import IO

from optmerge.models.cache import file_sha256

log = logging.getLogger(__name__)

STEP = 1 << 26  # bytes between two looks at the clock
SAID_EVERY = 60.0  # seconds
IDLE = 60.0  # seconds after which a connection that says nothing, or takes nothing, is closed
_WANTED = re.compile(r"/([0-9a-f]{64})")
_RANGE = re.compile(r"bytes=([0-9]{1,18})-")


@dataclass(frozen=True, slots=True)
class Source:
    """Where files can be had; can be pickled.

    Attributes:
        host: Address of the machine that searches.
        port: Of its server.
        token: Of this run.
    """

    host: str
    port: int
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Served:
    path: Path
    identity: tuple[int, int, int]


class FileServer:
    """Serves registered files until it is closed.

    Args:
        host: The address, of this machine, that workers' machines reach.
    """

    def __init__(self, host: str) -> None:
        """Begin to serve, on a free port.

        Raises:
            OSError: The address is none of this machine's.
        """
        self._token = secrets.token_urlsafe(32)
        self._files: dict[str, _Served] = {}
        self._server = _Server(host, self)
        self.source = Source(host, int(self._server.server_address[1]), self._token)
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="optmerge-files", daemon=True).start()

    def register(self, path: Path) -> tuple[str, int]:
        """Serve a file from now on; its content's SHA-256 and its size in bytes.

        Raises:
            OSError: It cannot be read.
        """
        real = path.resolve()
        stat = real.stat()
        sha256 = file_sha256(real)
        self._files[sha256] = _Served(real, _identity(stat))
        return sha256, stat.st_size

    def close(self) -> None:
        """Serve nothing more. May be called twice."""
        self._files.clear()
        self._server.shutdown()
        self._server.server_close()

    def admits(self, authorization: str) -> bool:
        """Whether a header's value holds the token."""
        return hmac.compare_digest(authorization.encode("utf-8", "replace"), f"Bearer {self._token}".encode())

    def open(self, sha256: str) -> IO[bytes] | None:
        """A registered file; None where it is not registered, or is not what it was then.

        Raises:
            OSError: It cannot be opened for the moment.
        """
        served = self._files.get(sha256)
        if served is None:
            return None
        try:
            file = served.path.open("rb")
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return None
        if _identity(os.fstat(file.fileno())) != served.identity:
            file.close()
            return None
        return file

    def name(self, sha256: str) -> str:
        """What a registered file is called, for the log."""
        served = self._files.get(sha256)
        return sha256 if served is None else f"{served.path.parent.name}/{served.path.name}"

    def knows(self, sha256: str) -> bool:
        """Whether a file of this content is registered."""
        return sha256 in self._files


def _identity(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, host: str, files: FileServer) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.files = files
        super().__init__((host, 0), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        log.debug("a connection of %s ended badly", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # so that a connection serves many files
    server_version, sys_version = "optmerge", ""
    timeout = IDLE
    server: _Server

    def do_GET(self) -> None:
        files = self.server.files
        if not files.admits(self.headers.get("Authorization", "")):
            self._refuse(401)
            return
        wanted = _WANTED.fullmatch(self.path)
        if wanted is None or not files.knows(wanted[1]):
            self._refuse(404)
            return
        try:
            file = files.open(wanted[1])
        except OSError as problem:
            log.warning("%s cannot be served: %s", files.name(wanted[1]), problem.strerror)
            self._refuse(503)
            return
        if file is None:
            self._refuse(409)
            return
        with file:
            self._send(file, files.name(wanted[1]))

    def _send(self, file: IO[bytes], name: str) -> None:
        size, begin = os.fstat(file.fileno()).st_size, 0
        asked = self.headers.get("Range")
        if asked is not None:
            found = _RANGE.fullmatch(asked)
            if found is None or int(found[1]) >= size:
                self._refuse(416)
                return
            begin = int(found[1])
        self.send_response(200 if asked is None else 206)
        self.send_header("Content-Length", str(size - begin))
        if asked is not None:
            self.send_header("Content-Range", f"bytes {begin}-{size - 1}/{size}")
        self.end_headers()
        self._stream(file, begin, size, name)

    def _stream(self, file: IO[bytes], begin: int, size: int, name: str) -> None:
        who = self.client_address[0]
        log.info("%s fetches %s, %d bytes", who, name, size - begin)
        started = said = time.monotonic()
        done = begin
        while done < size:
            sent = 0
            with suppress(OSError):  # it has gone, or takes nothing: a fetch that is still wanted begins again
                sent = self.connection.sendfile(file, offset=done, count=min(STEP, size - done))
            if not sent:
                log.info("%s went away after %d of %d bytes of %s", who, done, size, name)
                self.close_connection = True
                return
            done += sent
            if time.monotonic() - said >= SAID_EVERY:
                said = time.monotonic()
                log.warning("%s has fetched %.1f of %.1f GB of %s", who, done / 1e9, size / 1e9, name)
        log.info("%s has fetched %s in %.1f seconds", who, name, time.monotonic() - started)

    def _refuse(self, code: int) -> None:
        self.send_response(code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *values: object) -> None:
        log.debug("%s: " + format, self.client_address[0], *values)
