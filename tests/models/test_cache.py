"""The cache: hashes that follow a file's identity, and entries with sizes."""

from __future__ import annotations

import hashlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from optmerge.models import cache
from optmerge.models.cache import (
    cache_dir,
    cache_entries,
    facts_in_use,
    file_sha256,
    recall,
    remember,
    remember_sha256,
)


def _age(path: Path, seconds: int = 100) -> None:
    stamp = path.stat().st_mtime_ns - seconds * 10**9
    os.utime(path, ns=(stamp, stamp))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Files that were really hashed."""
    seen: list[object] = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: seen.append(file.name) or digest(file, name))
    return seen


def test_hash_is_remembered_until_the_file_changes(tmp_path: Path, reads: list[object]) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"abc")
    _age(path)
    assert file_sha256(path) == file_sha256(path) == hashlib.sha256(b"abc").hexdigest()
    assert len(reads) == 1
    path.write_bytes(b"abd")  # same size
    _age(path, 50)
    assert file_sha256(path) == hashlib.sha256(b"abd").hexdigest()
    replacement = tmp_path / "g"
    replacement.write_bytes(b"abe")
    stat = path.stat()
    os.utime(replacement, ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    replacement.replace(path)  # same size and time, another inode
    assert file_sha256(path) == hashlib.sha256(b"abe").hexdigest()


def test_a_file_that_just_changed_is_not_trusted(tmp_path: Path, reads: list[object]) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"abc")
    file_sha256(path)
    file_sha256(path)
    assert len(reads) == 2


def test_damaged_and_unwritable_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remember("values", "k", {"a": 1})
    assert recall("values", "k") == {"a": 1}
    (cache_dir() / "values" / "k.json").write_text("{")
    assert recall("values", "k") is None
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("OPTMERGE_CACHE", str(blocked / "below"))
    remember("values", "k", {"a": 1})  # says nothing, costs nothing
    assert recall("values", "k") is None


def test_many_writers_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: remember("values", "k", {"n": number}), range(64)))
    fact = recall("values", "k")
    assert fact is not None
    assert fact["n"] in range(64)
    assert [entry.files for entry in cache_entries()] == [1]


def test_entries_and_their_removal() -> None:
    assert cache_entries() == []
    remember("hashes", "a", {})
    remember("values", "b", {"x": 1})
    remember("values", "c", {"x": 1})
    entries = {entry.name: entry for entry in cache_entries()}
    assert (entries["values"].files, entries["values"].nbytes) == (2, 16)
    entries["values"].remove()
    assert [entry.name for entry in cache_entries()] == ["hashes"]


def test_the_facts_of_a_process_are_those_that_it_has_asked_for_or_stored() -> None:
    remember("samples", "stored", {"x": 1})
    (cache_dir() / "samples" / "of-others.json").write_text('{"x": 2}')
    remember("hashes", "another kind", {})
    assert facts_in_use(["samples", "fisher"]) == {("samples", "stored"): {"x": 1}}
    recall("samples", "of-others")
    assert recall("fisher", "not there") is None
    assert set(facts_in_use(["samples", "fisher"])) == {("samples", "stored"), ("samples", "of-others")}


def test_the_hash_of_what_was_just_written_needs_no_reading(tmp_path: Path, reads: list[object]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    digest = hashlib.sha256(b"content").hexdigest()
    remember_sha256(path, digest)
    assert file_sha256(path) == digest
    assert not reads
    path.write_bytes(b"other content")
    assert file_sha256(path) != digest
    assert reads


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_platform_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, platform: str) -> None:
    monkeypatch.delenv("OPTMERGE_CACHE")
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr(sys, "platform", platform)
    assert cache.cache_dir().name == "optmerge"
