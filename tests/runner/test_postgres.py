"""Two processes on one study in PostgreSQL, one of them killed half way: `make test-postgres`."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from optmerge.config.drivers import OptunaConfig
from optmerge.drivers.study_storage import given_up, open_storage
from optmerge.errors import ConfigError
from optmerge.records import Record, Trajectory
from tests.postgres import Server, postgres_server
from tests.runner.processes import finish_search, start_search

pytestmark = pytest.mark.postgres

Settings = Callable[..., dict[str, Any]]
BUDGET = 40


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgres_server() as running:
        yield running


def searched(folder: Path) -> list[Record]:
    return [record for record in Trajectory.read(folder).records if record.phase == "search"]


def trials_in(folder: Path) -> int:
    path = folder / "trajectory.jsonl"
    return path.read_bytes().count(b'"phase":"search"') if path.exists() else 0


def study_trials(server: Server) -> list[FrozenTrial]:
    (summary,) = optuna.get_all_study_summaries(server.url(server.password).replace("postgresql", "postgresql+psycopg"))
    storage = server.url(server.password).replace("postgresql", "postgresql+psycopg")
    return optuna.load_study(study_name=summary.study_name, storage=storage).trials


def test_two_processes_one_of_them_killed_lose_and_double_no_trial(
    settings: Settings, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUDY_PASSWORD", server.password)
    driver = {"name": "optuna", "startup": 5, "heartbeat": 1, "storage": server.url("${STUDY_PASSWORD}")}
    search = settings(driver=driver, budget={"evaluations": BUDGET}, alarms={"collapse": "warn"})
    roots = [tmp_path / "first", tmp_path / "second"]
    for root in roots:
        root.mkdir()
    first, second = (start_search(search, root) for root in roots)
    for root, process in zip(roots, (first, second), strict=True):
        while process.is_alive() and trials_in(root / "run") < 5:
            time.sleep(0.005)
    assert first.is_alive()
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    half = len(searched(roots[0] / "run"))
    assert 0 < half < BUDGET
    second.join()
    assert second.exitcode == 0
    reason = json.loads((roots[1] / "run" / "result.json").read_text())["reason"]
    assert reason == f"optuna stopped by itself: study has the {BUDGET} trials of the budget"
    alone = study_trials(server)
    assert sum(trial.state == TrialState.COMPLETE for trial in alone) == BUDGET, "the survivor finishes the study"

    finish_search(search, roots[0])  # resumes: there is nothing left to search, and it reports what it found
    trials = study_trials(server)
    assert [(trial.number, trial.state) for trial in trials] == [(trial.number, trial.state) for trial in alone]
    complete = {trial.number: trial for trial in trials if trial.state == TrialState.COMPLETE}
    assert all(trial.state == TrialState.COMPLETE or given_up(trial) for trial in trials), "nothing is left open"
    recorded = [record for root in roots for record in searched(root / "run")]
    numbers = [int(record.info["trial"]) for record in recorded]
    assert len(set(numbers)) == len(numbers), "no trial is in two trajectories, or twice in one"
    assert set(complete) <= set(numbers), "every finished trial is recorded"
    assert all(given_up(trials[number]) for number in set(numbers) - set(complete))
    for record, number in zip(recorded, numbers, strict=True):
        if number in complete:
            assert complete[number].value == record.value
            assert record.vector is not None
            assert list(complete[number].params.values()) == record.vector.tolist()
    again = [t.system_attrs["failed_trial"] for t in complete.values() if "failed_trial" in t.system_attrs]
    assert len(set(again)) == len(again), "what was given up was finished once"
    assert len(searched(roots[1] / "run")) > BUDGET // 4, "both worked"
    assert searched(roots[0] / "run")[0].info["finished"] <= 1

    for root in roots:
        for path in root.rglob("*"):
            assert path.is_dir() or server.password.encode() not in path.read_bytes(), f"{path} has the password"


def test_a_database_that_is_not_there_is_named_without_its_password(server: Server) -> None:
    config = OptunaConfig(storage=server.url("${STUDY_PASSWORD}"), study="x")
    with pytest.raises(ConfigError, match=r"environment has no such variable: export STUDY_PASSWORD"):
        open_storage(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDY_PASSWORD", "wrong")
        with pytest.raises(ConfigError, match=r"cannot be opened.*password authentication failed") as caught:
            open_storage(config)
    assert "wrong" not in str(caught.value)
