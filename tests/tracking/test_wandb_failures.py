"""W&B itself, made to fail: the run is the one that has no tracker, and one warning says what happened."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from optmerge.config.schema import TrackingConfig
from optmerge.records import Trajectory
from optmerge.tracking.sinks import BackgroundSink, SafeSinks
from optmerge.tracking.tracker_sink import TrackerSink
from optmerge.tracking.view import RunView
from optmerge.tracking.wandb_tracker import WandbTracker
from tests.tracking.fake_run import FakeRun
from tests.tracking.test_wandb import own_wandb_folders
from tests.tracking.wandb_reader import segments

__all__ = ["own_wandb_folders"]

FILES = ("trajectory.jsonl", "vectors.f64", "recipe.yaml", "result.json")

# A search whose tracker fails, in a process of its own, for W&B holds on to it: prints what the search warned of.
SEARCH = """
import json, logging, sys
from pathlib import Path
from optmerge.config.schema import TrackingConfig
from optmerge.tracking.sinks import BackgroundSink, SafeSinks
from optmerge.tracking.tracker_sink import TrackerSink
from optmerge.tracking.wandb_tracker import WandbTracker
from tests.tracking.fake_run import FakeRun

told = []
class Keep(logging.Handler):
    def emit(self, record):
        told.append(record.getMessage())
logging.getLogger("optmerge").addHandler(Keep(logging.WARNING))
folder, mode, *disk = sys.argv[1:]
run = FakeRun(Path(folder), layers=2, tasks=("sentiment", "author")).begin()
if disk:
    (run.folder / "wandb").symlink_to(disk[0])
sinks = SafeSinks([BackgroundSink(TrackerSink(WandbTracker(TrackingConfig(wandb=mode))), patience=10.0)])
sinks.start(run.folder)
run.on_record = sinks.record
run.baselines().search(5).finish()
sinks.finish(run.folder, "done")
sys.stdout.write(json.dumps(told))
"""


def _same(run: Path, plain: Path) -> None:
    for name in FILES:
        assert (run / name).read_bytes() == (plain / name).read_bytes()


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Ours: W&B has a log of its own, which it writes late."""
    records = [record for record in caplog.records if record.name.startswith("optmerge")]
    return [record.getMessage() for record in records if record.levelno >= logging.WARNING]


def _search(*arguments: str | Path, **environment: str) -> str:
    """Search in a process, and give its one warning."""
    done = subprocess.run(
        [sys.executable, "-c", SEARCH, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | environment,
        timeout=300,
        cwd=Path(__file__).parent.parent.parent,
    )
    (warning,) = json.loads(done.stdout)
    return str(warning)


def test_a_server_that_is_not_there(fake: Callable[..., FakeRun], tmp_path: Path) -> None:
    plain = fake("plain").baselines().search(5).finish()
    nobody = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "a" * 40}
    warning = _search(tmp_path / "tracked", "online", **nobody)
    _same(tmp_path / "tracked", plain.folder)
    assert "Weights & Biases" in warning  # FAILED, or NOT DONE where it still tries
    assert "`optmerge sync RUN`" in warning


def test_a_full_disk(fake: Callable[..., FakeRun], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free))
        assert shutil.disk_usage(disk).free == 0
        plain = fake("plain").baselines().search(5).finish()
        warning = _search(tmp_path / "tracked", "offline", disk)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
    _same(tmp_path / "tracked", plain.folder)
    assert "Weights & Biases" in warning


def test_a_folder_that_cannot_be_written(fake: Callable[..., FakeRun], caplog: pytest.LogCaptureFixture) -> None:
    plain = fake("plain").baselines().search(5).finish()
    run = fake("tracked")
    (run.folder / "wandb").write_text("where W&B wants its folder")
    sinks = SafeSinks([BackgroundSink(TrackerSink(WandbTracker(TrackingConfig(wandb="offline"))))])
    sinks.start(run.folder)
    run.on_record = sinks.record
    run.baselines().search(5).finish()
    sinks.finish(run.folder, "done")
    _same(run.folder, plain.folder)
    (warning,) = _warnings(caplog)
    assert "Weights & Biases FAILED" in warning


def test_an_exception_in_its_thread(
    fake: Callable[..., FakeRun], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = fake("plain").baselines().search(5).finish()
    run = fake("tracked")

    def broken(*_: object) -> None:
        raise SystemExit("out of the thread")

    monkeypatch.setattr(WandbTracker, "log", broken)
    sinks = SafeSinks([BackgroundSink(TrackerSink(WandbTracker(TrackingConfig(wandb="offline"))))])
    sinks.start(run.folder)
    run.on_record = sinks.record
    run.baselines().search(5).finish()
    sinks.finish(run.folder, "done")
    _same(run.folder, plain.folder)
    (warning,) = _warnings(caplog)
    assert "out of the thread" in warning


def test_a_search_is_resumed_in_the_process_where_its_tracker_failed(
    fake: Callable[..., FakeRun], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fake("tracked")

    def tracked() -> SafeSinks:
        sinks = SafeSinks([BackgroundSink(TrackerSink(WandbTracker(TrackingConfig(wandb="offline"))))])
        sinks.start(run.folder)
        run.on_record = sinks.record
        return sinks

    def broken(*_: object) -> None:
        raise ConnectionError("the server is gone")

    with monkeypatch.context() as patch:
        patch.setattr(WandbTracker, "log", broken)
        sinks = tracked()
        run.baselines().search(2).ended("interrupted", "Ctrl-C")
        sinks.finish(run.folder, "Ctrl-C")
        for thread in threading.enumerate():
            if thread.name == f"optmerge {WandbTracker.label}":
                thread.join(60)
    sinks = tracked()
    run.trajectory = Trajectory.open(run.folder)
    run.search(3).finish()
    sinks.finish(run.folder, "done")
    told = _warnings(caplog)
    assert [("FAILED" in text, "only the newest" in text) for text in told] == [(True, False), (False, True)], told
    assert [row["record"] for row in segments(run.folder)[-1].evaluations] == [record.id for record in run.records]


def test_a_run_that_is_still_open_in_this_process_is_left_alone(
    fake: Callable[..., FakeRun], caplog: pytest.LogCaptureFixture
) -> None:
    first, second = fake("left"), fake("tracked")
    tracker = WandbTracker(TrackingConfig(wandb="offline"))
    tracker.open(RunView.open(first.folder))
    try:
        sinks = SafeSinks([BackgroundSink(TrackerSink(WandbTracker(TrackingConfig(wandb="offline"))))])
        sinks.start(second.folder)
        second.on_record = sinks.record
        second.baselines().search(5).finish()
        sinks.finish(second.folder, "done")
    finally:
        tracker.close(RunView.open(first.folder))
    assert not _warnings(caplog)
    assert [row["record"] for row in segments(second.folder)[-1].evaluations] == list(range(len(second.records)))
    assert not segments(first.folder)[-1].evaluations
