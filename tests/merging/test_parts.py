"""Folders of parts: what goes in comes out, a write that ends early leaves nothing, and two writers get along."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import optmerge.merging.parts as parts
from optmerge.errors import ModelError
from optmerge.merging.parts import Parts, link_parts, write_parts

TENSORS = {f"layer.{index}": torch.arange(6.0).reshape(2, 3) + index for index in range(5)}


def one_by_one() -> Iterator[dict[str, torch.Tensor]]:
    for name, tensor in TENSORS.items():
        yield {name: tensor}


def check(folder: Path) -> None:
    stored = Parts(folder)
    for name, tensor in TENSORS.items():
        assert name in stored
        assert torch.equal(stored.read(name), tensor)
    assert "layer.9" not in stored


def test_tensors_come_back_from_as_many_files_as_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parts(tmp_path / "one", one_by_one())
    assert [path.name for path in sorted((tmp_path / "one").iterdir())] == ["part-00000.safetensors"]
    monkeypatch.setattr(parts, "PART", 2 * TENSORS["layer.0"].nbytes)
    write_parts(tmp_path / "three", one_by_one())
    files = sorted((tmp_path / "three").iterdir())
    assert [list(load_file(path)) for path in files] == [["layer.0", "layer.1"], ["layer.2", "layer.3"], ["layer.4"]]
    check(tmp_path / "one")
    check(tmp_path / "three")


def test_what_is_written_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART", 1)
    made: list[weakref.ref[torch.Tensor]] = []

    def one() -> dict[str, torch.Tensor]:
        assert all(reference() is None for reference in made)
        tensor = torch.zeros(3)
        made.append(weakref.ref(tensor))
        return {f"layer.{len(made)}": tensor}

    write_parts(tmp_path / "made", (one() for _ in range(3)))
    assert len(made) == 3


def test_no_tensors_are_a_folder_too(tmp_path: Path) -> None:
    write_parts(tmp_path / "none", iter(()))
    assert "layer.0" not in Parts(tmp_path / "none")


def test_a_write_that_ends_early_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> Iterator[dict[str, torch.Tensor]]:
        yield from one_by_one()
        raise MemoryError

    with pytest.raises(MemoryError):
        write_parts(tmp_path / "made", failing())
    assert not list(tmp_path.iterdir())


def test_a_killed_write_is_not_taken_for_whole(tmp_path: Path) -> None:
    code = """
import os, pathlib, signal, sys, torch
import optmerge.merging.parts as parts
parts.PART = 1
def killed():
    yield {"layer.0": torch.full((2, 3), -1.0)}
    yield {"layer.1": torch.full((2, 3), -1.0)}
    os.kill(os.getpid(), signal.SIGKILL)
parts.write_parts(pathlib.Path(sys.argv[1]), killed())
"""
    process = subprocess.run([sys.executable, "-c", code, str(tmp_path / "made")], check=False)
    assert process.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".made.tmp-")
    assert len(list(left.iterdir())) == 2  # it was killed while it wrote
    write_parts(tmp_path / "made", one_by_one())
    check(tmp_path / "made")


@pytest.mark.parametrize("when", ["before", "during"])
def test_the_faster_of_two_writers_wins(tmp_path: Path, when: str) -> None:
    def overtaken() -> Iterator[dict[str, torch.Tensor]]:
        write_parts(tmp_path / "made", one_by_one())
        yield {"layer.0": torch.full((2, 3), -1.0)}

    if when == "before":
        write_parts(tmp_path / "made", one_by_one())
    write_parts(tmp_path / "made", overtaken() if when == "during" else iter(()))
    check(tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_second_place_has_the_same_content_and_outlives_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parts(tmp_path / "first", one_by_one())
    link_parts(tmp_path / "first", tmp_path / "linked")

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no links here")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse)
        link_parts(tmp_path / "first", tmp_path / "copied")
    assert (tmp_path / "linked" / "part-00000.safetensors").stat().st_nlink == 2
    assert (tmp_path / "copied" / "part-00000.safetensors").stat().st_nlink == 1
    assert Parts(tmp_path / "first").sha256() == Parts(tmp_path / "linked").sha256()
    assert Parts(tmp_path / "first").sha256() == Parts(tmp_path / "copied").sha256()
    for path in (tmp_path / "first").iterdir():
        path.unlink()
    check(tmp_path / "linked")
    check(tmp_path / "copied")


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    write_parts(tmp_path / "made", one_by_one())
    path = tmp_path / "made" / "part-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ModelError, match="truncated"):
        Parts(tmp_path / "made")
