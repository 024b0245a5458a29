"""Calling ``optmerge`` inside the test process."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from optmerge.cli import main


class Result(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A function that runs ``optmerge ARGUMENTS`` and gives its exit code and output."""

    def call(*arguments: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["optmerge", *map(str, arguments)])
        capsys.readouterr()
        logger = logging.getLogger("optmerge")
        before = logger.level, logger.handlers
        with pytest.raises(SystemExit) as ended:
            main()
        logger.setLevel(before[0])  # what --quiet and --verbose set is for the process
        logger.handlers = before[1]
        out, err = capsys.readouterr()
        code = ended.value.code
        return Result(code if isinstance(code, int) else 0 if code is None else 1, out, err)

    return call


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a cache of its own."""
    monkeypatch.setenv("OPTMERGE_CACHE", str(tmp_path / "cache"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work
