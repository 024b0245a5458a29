"""A search that is killed while W&B logs it, and resumed: every evaluation is there once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from optmerge.config.schema import TrackingConfig
from optmerge.records import Trajectory
from optmerge.tracking.sinks import BackgroundSink, SafeSinks
from optmerge.tracking.tracker_sink import TrackerSink
from optmerge.tracking.wandb_tracker import WandbTracker
from tests.tracking.fake_run import FakeRun
from tests.tracking.test_wandb import own_wandb_folders
from tests.tracking.wandb_reader import segments

__all__ = ["own_wandb_folders"]

# Logs the baselines and three evaluations, and is killed in the midst of the fourth.
SEARCH = """
import os, signal, sys
from pathlib import Path
from optmerge.config.schema import TrackingConfig
from optmerge.tracking.tracker_sink import TrackerSink
from optmerge.tracking.wandb_tracker import WandbTracker
from tests.tracking.fake_run import FakeRun

run = FakeRun(Path(sys.argv[1]), layers=2, tasks=("sentiment", "author")).begin()
sink = TrackerSink(WandbTracker(TrackingConfig(wandb="offline")))
sink.start(run.folder)
run.on_record = sink.record
run.baselines().search(3)
run.on_record = lambda record: os.kill(os.getpid(), signal.SIGKILL)
run.search(1)
"""


def test_no_evaluation_is_lost_or_there_twice(tmp_path: Path) -> None:
    folder = tmp_path / "first"
    killed = subprocess.run(
        [sys.executable, "-c", SEARCH, str(folder)],
        check=False,
        env=os.environ,
        timeout=300,
        cwd=Path(__file__).parent.parent.parent,
    )
    assert killed.returncode == -signal.SIGKILL
    before = len(Trajectory.read(folder).records)

    run = FakeRun(folder, layers=2, tasks=("sentiment", "author"))
    run.trajectory = Trajectory.open(folder)
    sinks = SafeSinks([BackgroundSink(TrackerSink(WandbTracker(TrackingConfig(wandb="offline"))))])
    sinks.start(folder)
    run.on_record = sinks.record
    run.search(2).ended("interrupted", "Ctrl-C")
    sinks.finish(folder, "Ctrl-C")

    *killed_one, newest = segments(folder)  # there is none where the kill came before W&B's thread had begun
    assert len(run.records) == before + 4
    assert [row["record"] for row in newest.evaluations] == list(range(len(run.records)))
    assert [row.get("objective/value") for row in newest.evaluations if row["phase"] == "search"] == [
        record.value for record in run.records if record.phase == "search"
    ]
    assert {segment.run.run_id for segment in killed_one} <= {newest.run.run_id}
    assert all(len(segment.evaluations) < len(newest.evaluations) for segment in killed_one)
