"""A whole run sent to W&B afterwards."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from optmerge.records import Trajectory
from tests.cli.conftest import run
from tests.tracking.test_wandb import FakeWandb, own_wandb_folders
from tests.tracking.wandb_reader import segments

__all__ = ["own_wandb_folders", "run"]


def _without_tracker(folder: Path) -> list[int]:
    return [record.id for record in Trajectory.read(folder).records]


def test_offline_it_is_a_segment_with_everything(fake, run) -> None:
    made = fake().baselines().search(4).finish()
    said = json.loads(run("sync", made.folder, "--mode", "offline", "--project", "elsewhere", "--json").out)
    (segment,) = segments(made.folder)
    assert [row["record"] for row in segment.evaluations] == _without_tracker(made.folder)
    assert segment.run.project == "elsewhere"
    assert said["records"] == said["sent"] == len(made.records)
    assert Path(said["folder"]).is_dir()
    assert (made.folder / "report.html").is_file()  # it was not there, and is sent
    assert {artifact.type for artifact in segment.artifacts} >= {"recipe", "report"}
    assert not any("memory/process" in row for row in segment.evaluations)  # nobody knows it any more


def test_online_it_completes_what_is_there(fake, run, monkeypatch: pytest.MonkeyPatch) -> None:
    made = fake().baselines().search(4).finish()
    (made.folder / "wandb.json").write_text('{"id": "abc", "segments": 1}')
    wandb = FakeWandb(known=made.records[-3].id)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    result = run("sync", made.folder, "--project", "elsewhere", "--entity", "us")
    assert result.code == 0
    assert [row["record"] for row in wandb.rows if "record" in row] == [record.id for record in made.records[-2:]]
    assert f"2 evaluations were sent, {len(made.records)} are there: https://wandb.invalid/abc" in result.out
    assert (wandb.options["id"], wandb.options["project"], wandb.options["entity"]) == ("abc", "elsewhere", "us")


@pytest.mark.parametrize(
    ("wandb", "said"),
    [
        (FakeWandb("log"), "the server is gone. The run itself is untouched"),
        (FakeWandb(logged_in=False), "wandb login"),
    ],
)
def test_what_goes_wrong_is_said_in_a_paragraph(
    fake, run, monkeypatch: pytest.MonkeyPatch, wandb: FakeWandb, said: str
) -> None:
    made = fake().baselines().search(2).finish()
    before = (made.folder / "trajectory.jsonl").read_bytes()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    refused = run("sync", made.folder)
    assert refused.code == 2
    assert said in refused.err
    assert "Traceback" not in refused.err
    assert (made.folder / "trajectory.jsonl").read_bytes() == before


def test_a_run_that_goes_on_is_left_to_its_own_tracker(fake, run) -> None:
    import fcntl

    made = fake().baselines().search(1)
    with open(made.folder / ".lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        refused = run("sync", made.folder)
    assert refused.code == 2
    assert "is going on" in refused.err
    made.close()
