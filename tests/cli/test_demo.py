"""``optmerge demo``: the small one and the whole one do not share a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import optmerge.demo
from optmerge.cli.app import make_app


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [([], "runs/demo"), (["--quick"], "runs/demo-quick"), (["--quick", "--output", "here"], "here")],
)
def test_where_it_runs(monkeypatch: pytest.MonkeyPatch, arguments: list[str], folder: str) -> None:
    seen: list[Path] = []

    def run_demo(output: Path, **_: Any) -> dict[str, str]:
        seen.append(output)
        return {}

    monkeypatch.setattr(optmerge.demo, "run_demo", run_demo)
    done = CliRunner().invoke(make_app(), ["demo", *arguments])
    assert done.exit_code == 0, done.output
    assert seen == [Path(folder)]
