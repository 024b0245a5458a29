"""The dashboard on a run's journal, with a stand-in for optuna-dashboard."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
import pytest

from tests.cli.conftest import run

__all__ = ["run"]


class Dashboard(ModuleType):
    """As much of optuna-dashboard as is called."""

    def __init__(self, problem: BaseException | None = None) -> None:
        super().__init__("optuna_dashboard")
        self.problem = problem
        self.seen: list[tuple[str, int, int]] = []

    def run_server(self, storage: Any, *, host: str, port: int) -> None:
        (study,) = optuna.get_all_study_summaries(storage)
        self.seen.append((host, port, study.n_trials))
        if self.problem is not None:
            raise self.problem


@pytest.mark.parametrize("mirrored", [True, False])
def test_it_serves_the_journal(fake, run, monkeypatch: pytest.MonkeyPatch, mirrored: bool) -> None:
    from optmerge.tracking.optuna_mirror import OptunaMirror

    made = fake().baselines().search(3).finish()
    if mirrored:
        OptunaMirror().start(made.folder)
    module = Dashboard()
    monkeypatch.setitem(sys.modules, "optuna_dashboard", module)
    result = run("dashboard", made.folder, "--port", "9000")
    assert result.code == 0
    assert "http://localhost:9000" in result.out
    assert module.seen == [("localhost", 9000, 3)]


def test_a_taken_port_is_named(fake, run, monkeypatch: pytest.MonkeyPatch) -> None:
    made = fake().baselines().search(1).finish()
    monkeypatch.setitem(sys.modules, "optuna_dashboard", Dashboard(OSError(98, "Address already in use")))
    refused = run("dashboard", made.folder)
    assert refused.code == 2
    assert "localhost:8080" in refused.err
    assert "--port" in refused.err


def test_ctrl_c_ends_it(fake, run, monkeypatch: pytest.MonkeyPatch) -> None:
    made = fake().baselines().search(1).finish()
    monkeypatch.setitem(sys.modules, "optuna_dashboard", Dashboard(KeyboardInterrupt()))
    assert run("dashboard", made.folder).code == 0


def test_without_the_extra_it_says_how_to_get_it(fake, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = fake().close()
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    refused = run("dashboard", made.folder)
    assert refused.code == 2
    assert "pip install 'optmerge[dashboard]'" in refused.err
    assert "is not a run" in run("dashboard", tmp_path / "nowhere").err
