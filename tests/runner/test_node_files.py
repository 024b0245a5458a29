"""Files fetched from the machine that searches: once, whole, and as they were."""

from __future__ import annotations

import errno
import fcntl
import http.client
import os
import shutil
import signal
import time
from collections import namedtuple
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from optmerge.errors import RunError
from optmerge.models.cache import cache_entries
from optmerge.runner import file_fetch, file_server
from optmerge.runner.file_server import FileServer, Source
from optmerge.runner.node_files import Fetching, FileEntry, NodeFiles, Tree
from tests.runner.processes import start

CONTENT = np.random.default_rng(0).bytes(3 << 20)
ELSEWHERE = "/on/the/other/machine"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with closing(FileServer("127.0.0.1")) as made:
        yield made


@pytest.fixture
def original(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The machine's own cache folder."""
    monkeypatch.setenv("OPTMERGE_CACHE", str(tmp_path / "node"))
    return tmp_path / "node"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_fetch, "PAUSE", 0.01)


def tree_of(server: FileServer, path: Path, origin: str = ELSEWHERE) -> Tree:
    sha256, size = server.register(path)
    return Tree((FileEntry("sub/model.safetensors", sha256, size, origin),))


def placed(server: FileServer, tree: Tree) -> Path:
    here = NodeFiles(Fetching(server.source, ()))
    here.place([tree])
    return here.path(Path(tree.folder, "sub/model.safetensors"))


def fetched(cache: Path) -> list[str]:
    """What lies in the store, unfinished files included."""
    return sorted(path.name for path in (cache / "fetched" / "files").iterdir())


def answer(source: Source, path: str, token: str | None = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(source.host, source.port, timeout=10)
    with closing(connection):
        connection.request("GET", path, headers={"Authorization": f"Bearer {token or source.token}", **headers})
        response = connection.getresponse()
        return response.status, response.read()


def test_a_file_is_served_by_its_content_from_any_byte_on(server: FileServer, original: Path) -> None:
    sha256, size = server.register(original)
    assert size == len(CONTENT)
    assert answer(server.source, f"/{sha256}") == (200, CONTENT)
    assert answer(server.source, f"/{sha256}", Range="bytes=1000-") == (206, CONTENT[1000:])
    assert answer(server.source, f"/{sha256}", Range=f"bytes={size}-")[0] == 416


def test_another_token_gets_nothing(server: FileServer, original: Path) -> None:
    sha256, _ = server.register(original)
    for token in ("wrong", server.source.token[:-1], server.source.token + "x", "\xff"):
        assert answer(server.source, f"/{sha256}", token=token) == (401, b"")
    with closing(FileServer("127.0.0.1")) as other:
        assert other.source.token != server.source.token
    assert server.source.token not in repr(server.source)


def test_no_path_leads_to_a_file_that_was_not_registered(server: FileServer, original: Path, tmp_path: Path) -> None:
    sha256, _ = server.register(original)
    secret = tmp_path / "secret"
    secret.write_text("secret")
    for path in (
        str(secret),
        str(original),
        f"/../{secret.name}",
        f"/{sha256}/../{secret.name}",
        f"/{sha256[:-1]}",
        "/",
    ):
        assert answer(server.source, path) == (404, b"")


def test_a_file_that_has_changed_is_not_served(server: FileServer, original: Path) -> None:
    tree = tree_of(server, original)
    original.write_bytes(CONTENT[:-1] + b"x")
    assert answer(server.source, f"/{tree.entries[0].sha256}") == (409, b"")
    with pytest.raises(RunError, match=r"the file has changed there, or is gone, since the search began"):
        placed(server, tree)


def test_a_file_that_cannot_be_opened_for_the_moment_is_asked_for_again(
    server: FileServer, original: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that serves has too many files open, or the storage of the other side hangs."""
    tree = tree_of(server, original)
    opened = Path.open
    tried: list[Path] = []

    def short(self: Path, *arguments: Any, **options: Any) -> Any:
        if self == original:
            tried.append(self)
            if len(tried) == 1:
                raise OSError(errno.EMFILE, "Too many open files")
        return opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", short)
    assert placed(server, tree).read_bytes() == CONTENT
    assert len(tried) == 2


def test_a_file_that_is_gone_or_locked_away_is_not_asked_for_again(server: FileServer, original: Path) -> None:
    tree = tree_of(server, original)
    original.unlink()
    assert answer(server.source, f"/{tree.entries[0].sha256}") == (409, b"")


def test_a_file_is_fetched_once_and_found_again(server: FileServer, original: Path, cache: Path) -> None:
    tree = tree_of(server, original)
    path = placed(server, tree)
    assert path.read_bytes() == CONTENT
    assert path.resolve().is_relative_to(cache)
    server.close()  # nothing is asked for any more
    assert placed(server, tree) == path


def test_the_same_content_is_kept_once(server: FileServer, original: Path, cache: Path) -> None:
    (entry,) = tree_of(server, original).entries
    tree = Tree((entry, replace(entry, name="again")))
    placed(server, tree)
    assert fetched(cache) == [entry.sha256]


def test_a_file_that_the_machine_has_is_not_fetched(server: FileServer, original: Path, cache: Path) -> None:
    tree = tree_of(server, original, origin=str(original))
    assert placed(server, tree).resolve() == original
    assert fetched(cache) == []


def test_a_file_of_that_name_with_other_content_is_not_taken(
    server: FileServer, original: Path, cache: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes(CONTENT[:-1] + b"x")
    tree = tree_of(server, original, origin=str(other))
    assert placed(server, tree).read_bytes() == CONTENT


def test_a_file_that_the_machine_had_is_fetched_when_it_has_changed(
    server: FileServer, original: Path, cache: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.safetensors"
    own.write_bytes(CONTENT)
    tree = tree_of(server, original, origin=str(own))
    assert placed(server, tree).resolve() == own
    own.write_bytes(b"x" * len(CONTENT))
    assert placed(server, tree).read_bytes() == CONTENT


def test_a_file_that_was_damaged_on_disk_is_fetched_again(server: FileServer, original: Path, cache: Path) -> None:
    tree = tree_of(server, original)
    path = placed(server, tree).resolve()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"\0")
    assert placed(server, tree).read_bytes() == CONTENT


def test_a_byte_that_arrives_damaged_is_found(
    server: FileServer, original: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tree_of(server, original)
    damaged: list[bool] = []
    received = file_fetch.Fetcher._received

    def noisy(self: Any, *arguments: Any) -> Iterator[memoryview]:
        for chunk in received(self, *arguments):
            if damaged:
                yield chunk
            else:
                damaged.append(True)
                yield memoryview(b"\0" + bytes(chunk[1:]))

    monkeypatch.setattr(file_fetch.Fetcher, "_received", noisy)
    assert placed(server, tree).read_bytes() == CONTENT
    assert damaged


def test_what_arrives_damaged_twice_is_refused(
    server: FileServer, original: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tree_of(server, original)
    monkeypatch.setattr(file_fetch.Fetcher, "_received", lambda *arguments: iter([memoryview(bytes(len(CONTENT)))]))
    with pytest.raises(RunError, match="arrived damaged twice"):
        placed(server, tree)
    assert tree.entries[0].sha256 not in fetched(cache)


def test_a_fetch_goes_on_where_the_connection_broke(
    server: FileServer, original: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other side hangs up after every step; every step is sent once."""
    tree = tree_of(server, original)
    begun: list[int] = []
    stream = file_server._Handler._stream

    def short(self: Any, file: Any, begin: int, size: int, name: str) -> None:
        begun.append(begin)
        stream(self, file, begin, min(size, begin + (1 << 20)), name)
        self.close_connection = True

    monkeypatch.setattr(file_server._Handler, "_stream", short)
    assert placed(server, tree).read_bytes() == CONTENT
    assert begun == [0, 1 << 20, 2 << 20]


def test_a_machine_that_cannot_be_reached_is_told(server: FileServer, original: Path, cache: Path) -> None:
    tree = tree_of(server, original)
    server.close()
    with pytest.raises(ConnectionError, match=r"cannot be fetched from 127\.0\.0\.1:\d+, where the search runs"):
        placed(server, tree)
    assert fetched(cache) == []


def test_a_disk_without_room_is_told_before_anything_is_fetched(
    server: FileServer, original: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tree_of(server, original)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 40, 1 << 40, len(CONTENT) - 1))
    with pytest.raises(RunError, match=r"take 0\.00 GB on .*executor\.node_cache to a folder on a larger disk"):
        placed(server, tree)
    assert fetched(cache) == []


def _place(source: Source, tree: Tree, cache: str) -> None:
    os.environ["OPTMERGE_CACHE"] = cache
    NodeFiles(Fetching(source, ())).place([tree])


def test_many_processes_fetch_a_file_once(
    server: FileServer, original: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tree_of(server, original)
    begun: list[int] = []
    stream = file_server._Handler._stream

    def slow(self: Any, *arguments: Any) -> None:
        begun.append(arguments[1])
        time.sleep(1.0)  # so that the others are there before it is done
        stream(self, *arguments)

    monkeypatch.setattr(file_server._Handler, "_stream", slow)
    processes = [start(_place, server.source, tree, str(cache)) for _ in range(4)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert begun == [0]
    assert fetched(cache) == [tree.entries[0].sha256]


def test_who_waits_for_another_process_holds_no_connection(
    server: FileServer, original: Path, cache: Path, tmp_path: Path
) -> None:
    """So that a search of a thousand workers is connected with as many machines, and not with as many processes."""
    first = tmp_path / "first"
    first.write_bytes(b"first")
    entries = [*tree_of(server, first).entries, *tree_of(server, original).entries]
    tree = Tree((replace(entries[0], name="first"), entries[1]))
    part = cache / "fetched" / "files" / f".{entries[1].sha256}.part"
    part.parent.mkdir(parents=True)
    with part.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        process = start(_place, server.source, tree, str(cache))
        link = cache / "fetched" / "trees" / tree.key / "first"
        until = time.monotonic() + 60
        while not link.exists() or psutil.Process(process.pid).net_connections("tcp"):
            assert time.monotonic() < until, "a connection is held while another process fetches"
            time.sleep(0.05)
        assert process.is_alive()
    process.join(60)
    assert process.exitcode == 0


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told(
    server: FileServer, original: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(file: Any, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(
        RunError, match=r"has no file locks .*executor\.node_cache to a folder on a disk of each machine's own"
    ):
        placed(server, tree_of(server, original))


def test_a_process_killed_in_the_middle_leaves_its_part_to_the_next(
    server: FileServer, original: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tree_of(server, original)
    begun: list[int] = []
    stream = file_server._Handler._stream

    def stuck(self: Any, file: Any, begin: int, size: int, name: str) -> None:
        begun.append(begin)
        if begin == 0:
            stream(self, file, 0, 2 << 20, name)
            time.sleep(30)  # until the one who asked is killed, and long after
        else:
            stream(self, file, begin, size, name)

    monkeypatch.setattr(file_server._Handler, "_stream", stuck)
    process = start(_place, server.source, tree, str(cache))
    part = cache / "fetched" / "files" / f".{tree.entries[0].sha256}.part"
    until = time.monotonic() + 60
    while not part.exists() or part.stat().st_size < (1 << 20):
        assert time.monotonic() < until, "nothing arrives"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    assert fetched(cache) == [part.name]
    assert placed(server, tree).read_bytes() == CONTENT
    assert begun[0] == 0
    assert begun[1] >= 1 << 20, "what had arrived was fetched again"
    assert fetched(cache) == [tree.entries[0].sha256]


def test_what_an_earlier_fetch_has_left_is_used_only_where_it_is_right(
    server: FileServer, original: Path, cache: Path
) -> None:
    tree = tree_of(server, original)
    part = cache / "fetched" / "files" / f".{tree.entries[0].sha256}.part"
    part.parent.mkdir(parents=True)
    for left in (b"x" * 1000, CONTENT + b"more", CONTENT):
        part.write_bytes(left)
        path = placed(server, tree)
        assert path.read_bytes() == CONTENT
        path.resolve().unlink()


def test_cleaning_the_cache_costs_no_more_than_a_fetch(
    server: FileServer, original: Path, cache: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.safetensors"
    own.write_bytes(CONTENT + b"own")
    trees = [tree_of(server, original), tree_of(server, own, origin=str(own))]
    for tree in trees:
        placed(server, tree)
    (entry,) = [entry for entry in cache_entries() if entry.name == "fetched"]
    assert entry.nbytes >= len(CONTENT)
    entry.remove()
    assert own.read_bytes() == CONTENT + b"own", "a file of the machine's own was deleted"
    for tree, path in zip(trees, (original, own), strict=True):
        assert placed(server, tree).read_bytes() == path.read_bytes()
