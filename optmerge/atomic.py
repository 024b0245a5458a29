"""Files and folders that are whole or absent: written under a temporary name, synced to disk, renamed.

A process that is killed in the middle leaves at most a hidden ``.name.tmp-...`` beside the target, never half a file
under the target's own name.

    atomic_write(run / "recipe.yaml", text)
    with atomic_path(cache / "delta.safetensors") as temporary:
        save_file(tensors, temporary)
    with atomic_directory(Path("merged")) as temporary:
        ...                                  # fill it; it appears as merged/ when the block ends
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from optmerge.errors import RunError

log = logging.getLogger(__name__)

_REASONS = {
    errno.ENOSPC: "the disk is full. Free some space, or choose another place",
    errno.EDQUOT: "the disk quota is used up. Free some space, or choose another place",
    errno.EACCES: "there is no permission to write there. Choose another place, or change the permissions",
    errno.EPERM: "there is no permission to write there. Choose another place, or change the permissions",
    errno.EROFS: "the file system is read-only. Choose another place",
    errno.ENOTDIR: "a part of this path is a file, not a folder. Choose another place",
}
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how libraries written in Rust (safetensors) report an errno


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write a whole file (text as UTF-8), replacing what was there in one step.

    Raises:
        RunError: The disk refuses (full, read-only, no permission).
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path with the same suffix; when the block ends well, it becomes ``path``.

    Missing parent folders are made. An exception inside the block removes the temporary file and goes on.

    Raises:
        RunError: The disk refuses (full, read-only, no permission).
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        try:
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; when the block ends well, it becomes ``path``.

    ``path`` may be absent or an empty folder. An exception inside the block removes the temporary folder and goes on.

    Raises:
        RunError: ``path`` holds something already, or the disk refuses (full, read-only, no permission).
    """
    _require_free(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in sorted(path.parent.glob(f".{path.name}.tmp-*")):
            log.warning(
                "%s is left from an interrupted write; delete it unless a process is still writing it", leftover
            )
        temporary = _temporary(path)
        try:
            temporary.mkdir()
            yield temporary
            sync_directory(temporary)
            _require_free(path)  # it may have been filled while the block ran
            with suppress(FileNotFoundError):
                path.rmdir()
            os.rename(temporary, path)
            _sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def sync_directory(path: Path) -> None:
    """Wait until a folder, with all that is below it, is on the disk."""
    for folder, _, files in os.walk(path):
        for file in files:
            _sync(Path(folder, file))
        _sync(Path(folder))


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a disk's refusal inside the block into a `RunError` that names ``path`` and says what to do."""
    try:
        yield
    except Exception as problem:
        reason = _REASONS.get(_errno(problem))
        if reason is None:
            raise
        raise RunError(f"Cannot write {path}: {reason}.") from problem


def _errno(problem: Exception) -> int:
    if isinstance(problem, OSError):
        return problem.errno or 0
    told = _OS_ERROR.search(str(problem))
    return int(told[1]) if told else 0


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")


def _require_free(path: Path) -> None:
    if path.is_dir() and any(path.iterdir()):
        raise RunError(f"{path} is not empty. Choose another folder, or empty this one first.")
    if path.exists() and not path.is_dir():
        raise RunError(f"{path} is a file; a folder was expected there. Choose another name.")


def _sync(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDONLY)
    except (PermissionError, IsADirectoryError):  # Windows cannot open folders
        return
    try:
        os.fsync(handle)
    except OSError as problem:
        if problem.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # file systems without fsync
            raise
    finally:
        os.close(handle)
