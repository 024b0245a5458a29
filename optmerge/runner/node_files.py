"""Files of a search on a machine that has not the storage of the one that searches: fetched once, kept by content.

    here = NodeFiles(fetching)                      # what the worker was told: where files are, and which it needs
    config = here.located(config)                   # many processes at once fetch each file once between them
    here.place(context.trees)                       # what came later
    path = here.path(path)

What a search needs is listed as trees: a folder's files, or one file, each with the hash of its content. The process
that searches names them below `PLACE`, a folder that is somewhere else on every machine. There a tree is a folder of
links, ``fetched/trees/HASH OF THE LISTING``, to ``fetched/files/HASH``; or to the file under its own path, where this
machine has one with that content. Nothing is read that has another content, and no file is ever half there.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from optmerge.atomic import disk_errors
from optmerge.config.schema import SearchConfig
from optmerge.errors import RunError
from optmerge.models.cache import cache_dir, file_sha256, recall, remember, remember_sha256
from optmerge.runner.file_fetch import Fetcher
from optmerge.runner.file_server import Source
from optmerge.runner.references import Renaming, renamed

log = logging.getLogger(__name__)

PLACE = "/.optmerge-fetched"  # stands for the folder of all trees, on whatever machine


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of a tree.

    Attributes:
        name: Its place in the tree, with slashes.
        sha256: Of its content.
        size: In bytes.
        origin: Its path on the machine that searches.
    """

    name: str
    sha256: str
    size: int
    origin: str


@dataclass(frozen=True, slots=True)
class Tree:
    """A folder's files that are wanted."""

    entries: tuple[FileEntry, ...]

    @property
    def key(self) -> str:
        """A hash of the listing."""
        listing = sorted((entry.name, entry.sha256) for entry in self.entries)
        return hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:32]

    @property
    def folder(self) -> str:
        """Its name on any machine, see `PLACE`."""
        return f"{PLACE}/{self.key}"


@dataclass(frozen=True)
class Fetching:
    """What a machine is told; can be pickled.

    Attributes:
        source: Where files can be had.
        trees: What every worker needs.
        facts: What the cache of the process that searches knows and a worker must find the same: (kind, key) -> fact.
    """

    source: Source
    trees: tuple[Tree, ...]
    facts: Mapping[tuple[str, str], dict[str, Any]] = field(default_factory=dict)


class SharedFiles:
    """The files of a search on a machine that has them under the same paths."""

    def place(self, trees: Sequence[Tree]) -> None:
        """Nothing is fetched."""
        assert not trees, "files are fetched where the worker was told from where"

    def located(self, config: SearchConfig) -> SearchConfig:
        """The search as it is.

        Raises:
            RunError: One of its files is not here.
        """

        def model(text: str) -> str:
            for part in [text] if Path(text).exists() else text.split("+"):
                if Path(part).is_absolute():
                    self.path(Path(part))
            return text

        def file(text: str) -> str:
            return str(self.path(Path(text))) if Path(text).is_absolute() else text

        def own(text: str) -> str:
            path, _, name = text.rpartition(":")
            return f"{file(path)}:{name}"

        return renamed(config, Renaming(model, file, own, file))

    def path(self, path: Path) -> Path:
        """The path as it is.

        Raises:
            RunError: It is not here.
        """
        if not path.exists():
            raise RunError(
                f"{path} is not on {socket.gethostname()}, where a worker is to run. Put it on storage that all "
                "machines have at the same path, or set executor.files: fetch."
            )
        return path


class NodeFiles:
    """The files of a search on a machine that fetches them, kept below this process's cache folder.

    Args:
        fetching: What this machine was told.
    """

    def __init__(self, fetching: Fetching) -> None:
        self._fetching = fetching
        root = cache_dir() / "fetched"
        self._files, self._trees = root / "files", root / "trees"

    def place(self, trees: Sequence[Tree]) -> None:
        """See that all files of some trees are here.

        Raises:
            RunError: There is no room for them, the disk refuses, or one cannot be had as it was.
            ConnectionError: The machine that searches cannot be reached.
        """
        wanted = [
            (entry, link)
            for tree in trees
            for entry in tree.entries
            if not _is(link := self._trees / tree.key / _inside(entry.name), entry)
        ]
        self._require_room([entry for entry, _ in wanted])
        with closing(Fetcher(self._fetching.source)) as fetcher:
            for entry, link in wanted:
                with disk_errors(link):
                    _link(link, self._target(entry, fetcher))

    def located(self, config: SearchConfig) -> SearchConfig:
        """The search with the names that its files have here, once they are; and what it knows of them.

        Raises:
            RunError, ConnectionError: See `place`.
        """
        self.place(self._fetching.trees)
        for (kind, key), fact in self._fetching.facts.items():
            if recall(kind, key) != fact:
                remember(kind, key, fact)
        return renamed(config, Renaming(self._name, self._name, self._name, self._name))

    def path(self, path: Path) -> Path:
        """A path below `PLACE` as it is on this machine."""
        return Path(self._name(str(path)))

    def _name(self, text: str) -> str:
        return text.replace(PLACE, str(self._trees))

    def _target(self, entry: FileEntry, fetcher: Fetcher) -> Path:
        """Where a file's content is: fetched before, under its own path, or fetched now by one process for all."""
        path = self._files / entry.sha256
        while not _is(path, entry):
            with _claimed(_part(path), fetcher.close) as part:
                if part is None or _is(path, entry):
                    continue  # another process had it meanwhile
                origin = Path(entry.origin)
                if _is(origin, entry):
                    _part(path).unlink()
                    return origin.resolve()
                fetcher.complete(part, entry.sha256, entry.size, entry.origin)
                os.fchmod(part.fileno(), 0o444)
                os.replace(_part(path), path)
                remember_sha256(path, entry.sha256)
        return path

    def _require_room(self, entries: Sequence[FileEntry]) -> None:
        missing = {
            entry.sha256: entry.size - max(0, _size(_part(self._files / entry.sha256)))
            for entry in entries
            if entry.size not in (_size(self._files / entry.sha256), _size(Path(entry.origin)))
        }
        if not missing:
            return
        with disk_errors(self._files):
            self._files.mkdir(parents=True, exist_ok=True)
        need, free = sum(missing.values()), shutil.disk_usage(self._files).free
        if need > free:
            raise RunError(
                f"The files of this search take {need / 1e9:.2f} GB on {socket.gethostname()}, and {self._files} has "
                f"{free / 1e9:.2f} GB free. Free some space there (`optmerge clean` shows what is cached), or set "
                "executor.node_cache to a folder on a larger disk."
            )


@contextmanager
def _claimed(path: Path, busy: Callable[[], None]) -> Iterator[IO[bytes] | None]:
    """Hold a file for this process alone, made where it is not there; None where it is not this file any more.

    A process that ends, however it does, lets go of it; a file that is only empty is removed.

    Args:
        path: The file.
        busy: Called before this process waits for another one that holds the file.

    Raises:
        RunError: The system, or the file system, has no file locks.
    """
    try:
        import fcntl
    except ImportError:
        raise RunError(
            "executor.files is fetch, which needs the file locks of Linux or macOS. Set it to shared, and give this "
            "machine the files."
        ) from None
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                busy()
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as refusal:
            if refusal.errno not in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP):
                raise
            raise RunError(
                f"The disk of {path.parent} on {socket.gethostname()} has no file locks ({refusal.strerror}), and "
                "executor.files is fetch. Set executor.node_cache to a folder on a disk of each machine's own."
            ) from None
        try:
            same = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
        except FileNotFoundError:  # renamed or removed by the process that had it
            same = False
        try:
            yield file if same else None
        finally:
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)) and not _size(path):
                    path.unlink()


def _is(path: Path, entry: FileEntry) -> bool:
    """Whether a file is there and has the content that is wanted; what was hashed before is not read again."""
    try:
        return path.stat().st_size == entry.size and file_sha256(path) == entry.sha256
    except OSError:
        return False


def _link(link: Path, target: Path) -> None:
    """Make a link, or one that leads elsewhere lead there, in one step."""
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f".{secrets.token_hex(8)}.tmp")
    temporary.symlink_to(target)
    os.replace(temporary, link)


def _part(path: Path) -> Path:
    """What a fetch writes to until it is done."""
    return path.with_name(f".{path.name}.part")


def _size(path: Path) -> int:
    """Of a file in bytes; -1 where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _inside(name: str) -> Path:
    pure = PurePosixPath(name)
    inside = not pure.is_absolute() and ".." not in pure.parts
    assert inside, f"{name} leads out of its tree"
    return Path(pure)
