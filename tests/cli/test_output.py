"""Numbers for people, tables for pipes, JSON for programs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from optmerge.cli.options import overrides
from optmerge.cli.output import Output, duration, number, size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.1234, "0.12 s"), (9.96, "10 s"), (61, "1 min 1 s"), (3600, "1 h 0 min"), (59.7, "1 min 0 s")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2e12, "2.0 TB"), (3e15, "3000.0 TB")]
)
def test_size(count: float, text: str) -> None:
    assert size(count) == text


def test_number() -> None:
    assert (number(None), number(0.123456)) == ("-", "0.1235")


def test_table_in_a_pipe_is_ascii_and_not_folded(capsys: pytest.CaptureFixture[str]) -> None:
    Output().table(["name", "n"], [["x" * 300, 1], ["[bold]", None]], right=["n"])
    out = capsys.readouterr().out
    assert out.isascii()
    assert out.splitlines()[1:] == ["x" * 300 + "  1", "[bold]"]


@dataclass
class Fact:
    where: Path
    value: float


def test_json_is_all_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(json=True)
    output.say("for people")
    output.table(["a"], [["b"]])
    output.facts({"fact": Fact(Path("x"), float("nan")), 3: (1, 2)})
    assert json.loads(capsys.readouterr().out) == {"fact": {"where": "x", "value": None}, "3": [1, 2]}


def test_named_options_become_overrides_and_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = overrides(["seed=1"], seed=0, output=Path("run"), wandb="offline", limit=3)
    assert made == ["seed=1", "limit=3", f'output="{tmp_path}/run"', 'tracking.wandb="offline"', "seed=0"]
    assert overrides(None) == []
