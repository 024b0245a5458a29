"""SIGKILL at random moments of a search, then resume: the same run as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optmerge.records import Trajectory
from tests.runner.processes import finish_search, start_search, wait_for_records
from tests.zoo import facts

Settings = Callable[..., dict[str, Any]]
KILLS = 5


DRIVERS: tuple[dict[str, Any], ...] = (
    {"name": "adam", "batch": 8},
    {"name": "adamw"},
    {"name": "sgd", "batch": 8},
    {"name": "lbfgs"},
    {"name": "cma", "population": 5},
    {"name": "optuna"},
    {"name": "natural-niches"},
    {"name": "frank-wolfe"},
)
SCHEDULE: tuple[dict[str, Any], ...] = (
    {"driver": {"name": "adam", "batch": 4}, "evaluations": 8, "granularity": "task-wise", "examples": 12},
    {"driver": {"name": "lbfgs"}, "evaluations": 8, "granularity": "layer-wise"},
    {
        "driver": {"name": "cma", "population": 4},
        "granularity": "tensor-wise",
        "objective": {"terms": [{"name": "accuracy"}]},
    },
)
CHANGES: dict[str, dict[str, Any]] = {
    **{str(driver["name"]): {"driver": driver, "space": {"granularity": "tensor-wise"}} for driver in DRIVERS},
    "levenberg-marquardt": {"driver": {"name": "levenberg-marquardt"}, "space": {"granularity": "task-wise"}},
    "optuna-pruned": {"driver": {"name": "optuna", "pruner": "wilcoxon", "rungs": 2}, "alarms": {"collapse": "warn"}},
    "schedule": {"schedule": list(SCHEDULE), "alarms": {"collapse": "warn"}},
}


@pytest.mark.parametrize("name", CHANGES)
def test_sigkill_and_resume_equal_an_uninterrupted_run(settings: Settings, tmp_path: Path, name: str) -> None:
    search = settings(budget={"evaluations": 30}, **CHANGES[name])
    if name == "schedule":
        del search["driver"]
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    finish_search(search, tmp_path / "whole")
    total = len(Trajectory.read(tmp_path / "whole" / "run").records)
    generator = np.random.default_rng(int.from_bytes(os.urandom(4), "little"))
    folder = tmp_path / "killed" / "run"
    killed, moments = 0, []
    for after in sorted(generator.integers(0, total - 5, KILLS).tolist()):  # records that are there when the kill comes
        process = start_search(search, tmp_path / "killed")
        wait_for_records(folder, after, process)
        moments.append((after, float(generator.uniform(0.0, 0.03))))
        time.sleep(moments[-1][1])
        if process.is_alive():  # on a loaded machine the last of them may come too late
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.join()
    assert killed >= KILLS - 2, f"only {killed} kills hit; (records, seconds) {moments}"
    finish_search(search, tmp_path / "killed")
    assert facts(folder) == facts(tmp_path / "whole" / "run"), f"killed after (records, seconds) {moments}"
    for name in ("recipe.yaml", "search.yaml"):
        ours, expected = (Path(root, name).read_text() for root in (folder, tmp_path / "whole" / "run"))
        assert ours == expected
    result = json.loads((folder / "result.json").read_text())
    expected = json.loads((tmp_path / "whole" / "run" / "result.json").read_text())
    assert [(row["name"], row["mean"]) for row in result["rows"]] == [
        (row["name"], row["mean"]) for row in expected["rows"]
    ]
