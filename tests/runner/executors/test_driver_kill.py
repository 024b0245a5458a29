"""SIGKILL of the process that searches, while its workers evaluate; then resume: every candidate is there once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from optmerge.records import Record, Trajectory
from tests.runner.processes import finish_search, start_search, wait_for_records
from tests.zoo import facts

Settings = Callable[..., dict[str, Any]]
SEARCH: dict[str, Any] = {"driver": {"name": "cma", "population": 4}, "budget": {"evaluations": 16}}
KILLS = 2


def searched(folder: Path) -> list[Record]:
    return [record for record in Trajectory.read(folder).records if record.phase == "search"]


def kill_and_resume(settings: dict[str, Any], root: Path) -> Path:
    """A search that is killed at random moments after its first candidates, and resumed each time."""
    root.mkdir()
    folder = root / "run"
    generator = np.random.default_rng(int.from_bytes(os.urandom(4), "little"))
    killed = 0
    for after in sorted(generator.integers(1, 12, KILLS).tolist()):
        process = start_search(settings, root)
        wait_for_records(folder, 1, process)
        while process.is_alive() and len(searched(folder)) < after:
            time.sleep(0.01)
        time.sleep(float(generator.uniform(0.0, 0.05)))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.join()
    assert killed, "no kill hit"
    finish_search(settings, root)
    return folder


def test_in_generations_it_is_the_run_of_one_process(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    finish_search(settings(**SEARCH), tmp_path / "one")
    killed = kill_and_resume(settings(**SEARCH, executor={"workers": 2}), tmp_path / "killed")
    assert facts(killed) == facts(tmp_path / "one" / "run")
    assert (killed / "recipe.yaml").read_text() == (tmp_path / "one" / "run" / "recipe.yaml").read_text()
