"""Files and folders are whole or absent, whatever happens in between."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from optmerge.atomic import atomic_directory, atomic_path, atomic_write, disk_errors
from optmerge.errors import RunError


def test_writes_text_and_bytes_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "made" / "on the way" / "file.txt"
    atomic_write(target, "grüße")
    assert target.read_bytes() == "grüße".encode()
    atomic_write(target, b"\x00\x01")
    assert target.read_bytes() == b"\x00\x01"
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]


def test_new_files_have_the_usual_permissions(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    atomic_write(tmp_path / "file", "")
    assert (tmp_path / "file").stat().st_mode == plain.stat().st_mode


def test_the_temporary_path_keeps_the_suffix(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "values.npz") as temporary:
        assert temporary.suffix == ".npz"
        assert temporary.parent == tmp_path
        temporary.write_bytes(b"x")


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(FileNotFoundError), atomic_path(target) as temporary:
        temporary.with_name("absent").rename(temporary)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_directory_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()  # an empty one is fine
    with atomic_directory(target) as temporary:
        (temporary / "below").mkdir()
        (temporary / "below" / "file").write_text("x")
        assert not any(target.iterdir())
    assert (target / "below" / "file").read_text() == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_failure_leaves_no_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_directory(tmp_path / "folder") as temporary:
        (temporary / "absent" / "file").write_text("half")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("late", [False, True])
def test_a_full_directory_is_refused(tmp_path: Path, late: bool) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    if not late:
        (target / "mine").write_text("")
    with pytest.raises(RunError, match="not empty"), atomic_directory(target):
        (target / "mine").write_text("")
    assert (target / "mine").exists()


def test_a_file_in_the_place_of_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("")
    with pytest.raises(RunError, match="is a file"), atomic_directory(tmp_path / "folder"):
        pass


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "disk is full"), (errno.EACCES, "no permission"), (errno.EROFS, "read-only")],
)
def test_a_disk_that_refuses_is_told_in_words(tmp_path: Path, number: int, words: str) -> None:
    with pytest.raises(RunError, match=words) as told, disk_errors(tmp_path / "file"):
        raise OSError(number, os.strerror(number))
    assert str(tmp_path / "file") in str(told.value)
    with pytest.raises(RunError, match=words), disk_errors(tmp_path / "file"):
        raise RuntimeError(f"Error while serializing: I/O error: refused (os error {number})")


def test_other_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "no such file")
    with pytest.raises(ValueError, match="mine"), disk_errors(tmp_path):
        raise ValueError("mine")


def test_a_parent_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        atomic_write(tmp_path / "file" / "below" / "x", "")


KILLED = """
import sys, time
from pathlib import Path
from optmerge.atomic import atomic_directory
with atomic_directory(Path(sys.argv[1])) as temporary:
    (temporary / "model.safetensors").write_bytes(b"half")
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_process_leaves_nothing_that_looks_finished(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    target = tmp_path / "folder"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(target)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not target.exists()
    with caplog.at_level(logging.WARNING), atomic_directory(target) as temporary:
        (temporary / "file").write_text("")
    assert "left from an interrupted write" in caplog.text
    assert [path.name for path in target.iterdir()] == ["file"]
