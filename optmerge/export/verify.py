"""What was written, read again: every byte by its hash, every safetensors file by its header.

verify(folder, {"model.safetensors": digest, "config.json": digest}, [("model.safetensors", specs)])
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from optmerge.errors import ModelError, RunError
from optmerge.export.safetensors_writer import TensorSpec
from optmerge.models.mapped import SafetensorsFile
from optmerge.records import Progress


def verify(
    folder: Path,
    digests: Mapping[str, str],
    shards: Mapping[str, Sequence[TensorSpec]],
    *,
    progress: Progress | None = None,
) -> None:
    """Compare a folder with what was written into it.

    Files are synced and dropped from the system's cache first, where it has a call for that, so that what is read is
    what the disk holds.

    Args:
        folder: The written folder.
        digests: Path below it -> SHA-256 of what was written; no other file may be there.
        shards: The paths that are safetensors files -> their planned tensors.
        progress: Told how many bytes are read.

    Raises:
        RunError: A file differs, is missing, or is there and should not be; it is named.
    """
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    for name in sorted(digests.keys() ^ found.keys()):
        raise RunError(_trouble(folder / name, "is missing" if name in digests else "was not written by this merge"))
    total = sum(path.stat().st_size for path in found.values())
    done = 0
    read: dict[tuple[int, int], str] = {}  # a file that is linked into several folders is read once
    for name, digest in digests.items():
        path = found[name]
        if name in shards:
            _compare_header(path, shards[name])
        inode = (path.stat().st_dev, path.stat().st_ino)
        again = read[inode] if inode in read else _read_again(path)
        read[inode] = again
        if again != digest:
            raise RunError(_trouble(path, f"has the SHA-256 {again}, and {digest} was written"))
        done += path.stat().st_size
        if progress:
            progress("verify", done, total)


def _compare_header(path: Path, specs: Sequence[TensorSpec]) -> None:
    try:
        tensors = SafetensorsFile(path).tensors  # compares the header's end with the file's length
    except ModelError as problem:
        raise RunError(_trouble(path, str(problem))) from None
    there = {name: (info.shape, info.dtype) for name, info in tensors.items()}
    for spec in specs:
        if there.pop(spec.name, None) != (spec.shape, spec.dtype):
            raise RunError(_trouble(path, f"does not hold the tensor {spec.name} as it was planned"))
    if there:
        raise RunError(_trouble(path, f"holds the tensor {next(iter(there))}, which was not planned"))


def _trouble(path: Path, what: str) -> str:
    return (
        f"{path} {what}: the merge was written and does not read back as it was. Nothing is kept of it. "
        "Check the disk, or choose another one, and merge again."
    )


def digest_of(content: bytes) -> str:
    """SHA-256 of a small file's content.

    >>> digest_of(b"")[:8]
    'e3b0c442'
    """
    return hashlib.sha256(content).hexdigest()


def _read_again(path: Path) -> str:
    with path.open("rb") as file:
        if hasattr(os, "posix_fadvise"):
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.file_digest(file, "sha256").hexdigest()
