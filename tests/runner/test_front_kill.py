"""SIGKILL at random moments of a search of several objectives and of its front's scoring, then resume: the same run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from optmerge.records import Trajectory
from tests.runner.processes import finish_search, start_search, wait_for_records
from tests.zoo import facts

Settings = Callable[..., dict[str, Any]]


def test_sigkill_and_resume_equal_an_uninterrupted_run(settings: Settings, tmp_path: Path) -> None:
    driver = {"name": "optuna", "sampler": "nsga3", "population": 6}
    # Little of the front is known before it is scored.
    search = settings(driver=driver, budget={"evaluations": 26, "front": 5, "finalists": 1, "select_every": 4})
    whole, folder = (tmp_path / name / "run" for name in ("whole", "killed"))
    for run in (whole, folder):
        run.parent.mkdir()
    finish_search(search, whole.parent)
    records = Trajectory.read(whole).records
    scoring = next(record.id for record in records if (record.name or "").startswith("front:"))
    generator = np.random.default_rng(int.from_bytes(os.urandom(4), "little"))
    assert scoring + 2 < len(records)
    moments = sorted([*generator.integers(0, scoring, 2).tolist(), scoring + 1, len(records) - 1])
    killed = 0
    for after in moments:
        process = start_search(search, folder.parent)
        wait_for_records(folder, after, process)
        time.sleep(float(generator.uniform(0.0, 0.01)))
        if process.is_alive():  # on a loaded machine the last of them may come too late
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.join()
    assert killed >= len(moments) - 2, f"only {killed} kills hit of those after {moments} records"
    finish_search(search, folder.parent)
    assert facts(folder) == facts(whole), f"killed after {moments} records"
    fronts = [{path.name: path.read_text() for path in (run / "front").glob("*.yaml")} for run in (folder, whole)]
    assert fronts[0] == fronts[1] != {}
    assert (folder / "front.json").read_text() == (whole / "front.json").read_text()
