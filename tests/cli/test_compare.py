"""``optmerge compare`` with a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.tracking.fake_run import FakeRun


@pytest.fixture
def runs(folder: Path) -> list[Path]:
    return [
        FakeRun(folder / name, layers=2, tasks=("sentiment",), seed=seed).begin().baselines().search(4).finish().folder
        for seed, name in enumerate(("a", "b"))
    ]


def test_the_picture_is_written_beside_the_tables(run: Run, runs: list[Path], folder: Path) -> None:
    result = run("compare", *runs, "--picture", "both.png")
    assert result.code == 0, result.err
    assert (folder / "both.png").read_bytes().startswith(b"\x89PNG")
    assert "Wrote both.png" in result.out
    assert "**1**" in result.out  # the seed of the second run


def test_json_says_where_the_picture_is(run: Run, runs: list[Path]) -> None:
    assert json.loads(run("compare", *runs, "--picture", "both.png", "--json").out)["picture"] == "both.png"
    assert json.loads(run("compare", *runs, "--json").out)["picture"] is None


@pytest.mark.parametrize(("name", "said"), [("both.jpg", "does not end in .png"), ("there.png", "is not overwritten")])
def test_a_name_that_cannot_be_used(run: Run, runs: list[Path], folder: Path, name: str, said: str) -> None:
    (folder / "there.png").write_text("mine")
    result = run("compare", *runs, "--picture", name)
    assert result.code == 2
    assert said in result.err
    assert (folder / "there.png").read_text() == "mine"
    assert not (folder / "both.jpg").exists()
