"""Ctrl-C in a terminal: once finishes the evaluation and saves, twice stops at once; nothing is lost either way."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from optmerge.errors import RunInterrupted
from optmerge.records import Trajectory
from optmerge.runner.search import resume
from optmerge.tracking.view import RunView
from tests.zoo import facts, make_zoo, zoo_settings

CTRL_C = b"\x03"
KILLED = "the process ended without a word (killed, or the machine stopped)"
DEADLINE = 240.0  # seconds; starting takes most of them on a busy machine


class Typed:
    """`optmerge` in a pseudo-terminal of 80 columns, which somebody types into."""

    def __init__(self, folder: Path, *arguments: str, environment: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        os.set_blocking(self._master, False)
        self.text = ""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "optmerge", *arguments],
            cwd=folder,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_take_terminal,
            env=environment | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
        )
        os.close(slave)

    def until(self, pattern: str) -> None:
        """Wait until the screen has shown it."""
        end = time.monotonic() + DEADLINE
        while not re.search(pattern, self.text):
            assert time.monotonic() < end, f"no {pattern} in {self.text[-3000:]}"
            assert self._read() or self._process.poll() is None, f"no {pattern} in {self.text[-3000:]}"

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def end(self) -> int:
        """The exit code, once everything that was printed is read."""
        end = time.monotonic() + DEADLINE
        while self._process.poll() is None:
            assert time.monotonic() < end, self.text[-3000:]
            self._read()
        while self._read():
            pass
        return self._process.returncode

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], 0.2)
        if not ready:
            return False
        try:
            some = os.read(self._master, 65536)
        except OSError:  # the other end is closed
            return False
        self.text += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", some.decode(errors="replace"))
        return bool(some)


def _take_terminal() -> None:
    """Make the pseudo-terminal the one whose Ctrl-C is this process's."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("zoo"), "bert")


@pytest.fixture
def folder(zoo: Path, tmp_path: Path) -> Path:
    """A search whose evaluations take long enough to be interrupted."""
    settings = zoo_settings(zoo, driver={"name": "cma", "population": 4}, budget={"evaluations": 400})
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path


@pytest.fixture
def start(folder: Path) -> Iterator[Typed]:
    cache = {"OPTMERGE_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    typed = Typed(folder, "search", "search.yaml", environment=dict(os.environ) | cache)
    yield typed
    typed.close()


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c(start: Typed, folder: Path, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    start.until(r"best select +\d")
    start.type(CTRL_C)
    start.until("Finishing the current evaluation, then saving. Ctrl-C again stops at once.")
    if times == 2:
        start.type(CTRL_C)
    assert start.end() == 130
    assert "Traceback" not in start.text
    assert re.search(r"Continue with:\s+optmerge resume run", start.text)
    kept = facts(folder / "run")
    records = Trajectory.read(folder / "run").records
    assert any(record.phase == "search" for record in records)
    assert not any(record.error for record in records)
    view = RunView.open(folder / "run")
    assert view.status == "interrupted"
    # An evaluation may end before the second one is typed.
    assert view.reason in ("interrupted by Ctrl-C", KILLED)[:times]
    # What is there is replayed, and refused if the search would ask for anything else.
    monkeypatch.setenv("OPTMERGE_CACHE", str(folder / "cache"))
    asked = iter([None] * 3)
    with pytest.raises(RunInterrupted, match="enough"):
        resume(folder / "run", stop=lambda: next(asked, "enough"))
    after = facts(folder / "run")
    assert after[: len(kept)] == kept
    assert len(after) > len(kept)
