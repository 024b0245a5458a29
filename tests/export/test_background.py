"""The writing thread: all bytes in order, few buffers, and failures that reach the caller."""

from __future__ import annotations

import errno
import hashlib
import threading
from pathlib import Path

import pytest
import torch

from optmerge.export.background import BackgroundWriter

FULL = Path("/dev/full")


def fill(writer: BackgroundWriter, values: bytes) -> None:
    writer.reserve(len(values)).copy_(torch.tensor(list(values), dtype=torch.uint8))


@pytest.mark.parametrize("buffer_bytes", [4, 7, 1000])
def test_bytes_arrive_in_order(buffer_bytes: int, tmp_path: Path) -> None:
    pieces = [bytes([index] * (index % 5)) for index in range(200)]
    pieces = [piece for piece in pieces if len(piece) <= buffer_bytes]
    with BackgroundWriter(hashed=True, buffer_bytes=buffer_bytes) as writer:
        for name in ("a", "b"):
            writer.open(tmp_path / name, name.encode())
            for piece in pieces:
                fill(writer, piece)
    for name in ("a", "b"):
        content = (tmp_path / name).read_bytes()
        assert content == name.encode() + b"".join(pieces)
        assert writer.digests[tmp_path / name] == hashlib.sha256(content).hexdigest()
    assert writer.written == 2 * sum(map(len, pieces))


def test_a_place_is_aligned_although_the_file_is_not(tmp_path: Path) -> None:
    with BackgroundWriter(buffer_bytes=64) as writer:
        writer.open(tmp_path / "a")
        fill(writer, b"abc")
        writer.reserve(8, align=8).view(torch.float64).fill_(1.0)
    assert (tmp_path / "a").read_bytes() == b"abc" + torch.ones((), dtype=torch.float64).numpy().tobytes()


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
@pytest.mark.parametrize("calls", [1, 50])
def test_a_full_disk_reaches_the_caller(calls: int) -> None:
    def write() -> None:
        with BackgroundWriter(buffer_bytes=1 << 14) as writer:
            writer.open(FULL)
            for _ in range(calls):
                writer.reserve(1 << 14).fill_(1)

    with pytest.raises(OSError, match=r"[Nn]o space") as told:
        write()
    assert told.value.errno == errno.ENOSPC
    assert not [thread for thread in threading.enumerate() if thread.name == "optmerge-writer"]


def test_a_file_that_cannot_be_made_reaches_the_caller(tmp_path: Path) -> None:
    def write() -> None:
        with BackgroundWriter(buffer_bytes=8) as writer:
            writer.open(tmp_path / "absent" / "a")
            for _ in range(10):
                fill(writer, b"12345678")

    with pytest.raises(FileNotFoundError):
        write()


def test_the_callers_own_failure_is_the_one_that_is_seen(tmp_path: Path) -> None:
    def write() -> None:
        with BackgroundWriter(buffer_bytes=8) as writer:
            writer.open(tmp_path / "a")
            fill(writer, b"12345678")
            fill(writer, b"dropped")
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        write()
    assert (tmp_path / "a").read_bytes() == b"12345678"
