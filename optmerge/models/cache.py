"""The user's cache folder: content hashes, value scans and whatever else can be made again.

Everything in it is keyed by content and written atomically, one file per fact, so that any number of processes may
share it. Deleting any of it costs time only.

    digest = file_sha256(Path("zoo/base/model.safetensors"))    # read once, then remembered
    for entry in cache_entries():
        entry.name, entry.nbytes                                # what `optmerge clean` shows
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optmerge.atomic import atomic_write
from optmerge.errors import RunError

log = logging.getLogger(__name__)

_HASHES = "hashes"
_in_use: set[tuple[str, str]] = set()  # kind and key of what this process has recalled or remembered
_SETTLED = 2.0  # seconds; a file changed more recently could change again without its time stamp showing it


def cache_dir() -> Path:
    """Where caches live: ``$OPTMERGE_CACHE``, else ``optmerge`` in the platform's cache folder. May not exist yet."""
    chosen = os.environ.get("OPTMERGE_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        parent = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        parent = Path.home() / "Library" / "Caches"
    else:
        parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return parent / "optmerge"


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One kind of thing in the cache.

    Attributes:
        name: Its folder's name: hashes, values, directions, ...
        path: The folder.
        files: How many files it holds.
        nbytes: Their size together.
    """

    name: str
    path: Path
    files: int
    nbytes: int

    def remove(self) -> None:
        """Delete it all."""
        if self.path.is_dir():
            shutil.rmtree(self.path)
        else:
            self.path.unlink(missing_ok=True)


def cache_entries() -> list[CacheEntry]:
    """What is in the cache, by name."""
    root = cache_dir()
    if not root.is_dir():
        return []
    return [_measure(path) for path in sorted(root.iterdir())]


def _measure(path: Path) -> CacheEntry:
    sizes = []
    for file in [path, *path.rglob("*")]:
        try:
            if file.is_file():
                sizes.append(file.lstat().st_size)
        except FileNotFoundError:  # another process cleans up at the same time
            continue
    return CacheEntry(path.name, path, len(sizes), sum(sizes))


def recall(kind: str, key: str) -> dict[str, Any] | None:
    """A fact that `remember` stored, or None; a damaged entry counts as none."""
    try:
        fact = json.loads((cache_dir() / kind / f"{key}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(fact, dict):
        return None
    _in_use.add((kind, key))
    return fact


def remember(kind: str, key: str, fact: dict[str, Any]) -> None:
    """Store a small fact. A cache that cannot be written costs time, not correctness, so that is only logged."""
    try:
        atomic_write(cache_dir() / kind / f"{key}.json", json.dumps(fact))
        _in_use.add((kind, key))
    except (RunError, OSError) as problem:
        log.debug("not cached: %s", problem)


def facts_in_use(kinds: Collection[str]) -> dict[tuple[str, str], dict[str, Any]]:
    """The facts of some kinds that this process has recalled or remembered, for another machine's cache.

    Args:
        kinds: Those that say nothing of this machine's paths.
    """
    known = {(kind, key): recall(kind, key) for kind, key in sorted(_in_use) if kind in kinds}
    return {name: fact for name, fact in known.items() if fact is not None}


def file_sha256(path: Path, *, compute: Callable[[Path], str] | None = None) -> str:
    """SHA-256 of a file's bytes, remembered for as long as its path, size, modification time and inode stay.

    Args:
        path: The file.
        compute: Makes the hash where it is not known; default reads the file.

    Raises:
        OSError: The file cannot be read.
    """
    real = path.resolve()
    identity, key = _identity(real), _hash_key(real)
    known = recall(_HASHES, key)
    if known is not None and known.get("identity") == identity and isinstance(known.get("sha256"), str):
        return str(known["sha256"])
    digest = compute(real) if compute else _digest(real)
    settled = time.time() - real.stat().st_mtime > _SETTLED
    if settled and _identity(real) == identity:
        remember(_HASHES, key, {"identity": identity, "sha256": digest})
    return digest


def remember_sha256(path: Path, digest: str) -> None:
    """Store the hash of a file that this process has just written, and nobody writes to any more."""
    real = path.resolve()
    remember(_HASHES, _hash_key(real), {"identity": _identity(real), "sha256": digest})


def _hash_key(real: Path) -> str:
    return hashlib.sha256(str(real).encode()).hexdigest()[:32]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _identity(path: Path) -> list[str | int]:
    stat = path.stat()
    return [str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino]
