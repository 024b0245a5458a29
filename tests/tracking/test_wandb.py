"""The W&B sink: offline runs are read back; a tracker that fails never hurts a search."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from optmerge.config.schema import TrackingConfig
from optmerge.records import Trajectory
from optmerge.tracking.sinks import BackgroundSink, SafeSinks
from optmerge.tracking.view import RunView
from optmerge.tracking.wandb_rows import RowMaker
from optmerge.tracking.wandb_sink import WandbSink, wandb_config
from tests.tracking.wandb_reader import segments


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb-home"))
    for name in ("WANDB_MODE", "WANDB_RUN_ID", "WANDB_DIR", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def _offline() -> SafeSinks:
    return SafeSinks([BackgroundSink(WandbSink(TrackingConfig(wandb="offline", project="p", tags=["mine"])))])


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_offline_run_read_back(fake, caplog: pytest.LogCaptureFixture) -> None:
    run = fake(evaluations=12, settings_update={"experts": {"a.b": "zoo/a"}})
    sinks = _offline()
    sinks.start(run.folder)
    run.on_record = sinks.record
    run.baselines().search(fail=(4,)).finish()
    sinks.finish(run.folder, "done")
    assert not _warnings(caplog)

    (segment,) = segments(run.folder)
    rows, records = segment.evaluations, run.records
    assert [row["record"] for row in rows] == [record.id for record in records]
    assert all("evaluations" in row for row in segment.history)
    assert [row["phase"] for row in rows] == [record.phase for record in records]
    search = [(row, record) for row, record in zip(rows, records, strict=True) if record.phase == "search"]
    assert [row["evaluations"] for row, _ in search] == list(range(1, 13))
    assert [row.get("objective/value") for row, _ in search] == [record.value for _, record in search]
    assert search[4][0]["error"] == "out of memory"
    assert {"task/sentiment", "time/merge", "coefficient/iso-c/mean", "driver/gradient_norm"} <= set(search[0][0])
    assert rows[-1]["report/sentiment/accuracy"] == records[-1].metrics["sentiment"]["accuracy"]

    assert ("*", "evaluations") in [(metric.glob_name, metric.step_metric) for metric in segment.metrics]
    (recipe,) = [artifact for artifact in segment.artifacts if artifact.type == "recipe"]
    assert recipe.name == f"recipe-{segment.run.run_id}"
    assert set(recipe.aliases) == {"best", "latest"}
    assert "recipe.yaml" in [entry.path for entry in recipe.manifest.contents]
    assert segment.run.run_id == json.loads((run.folder / "wandb.json").read_text())["id"]
    assert (segment.run.project, segment.run.job_type, segment.run.display_name) == ("p", "search", "first")
    assert {"adam", "tensor-wise", "expert-kl", "mine"} == set(segment.run.tags)
    assert segment.config["driver"] == {"name": "adam", "lr": 0.02, "batch": None}
    assert segment.config["experts"] == {"a_b": "zoo/a"}
    assert segment.summary["baseline/base"] == pytest.approx(0.776)
    assert segment.summary["result/accuracy"] == pytest.approx(0.827)
    assert segment.summary["status"] == "finished"
    assert segment.history[-1]["coefficients/_type"] == "image-file"
    assert segment.exit_code == 0


def test_offline_resume_in_a_copied_folder_logs_everything_again(
    fake, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = fake().baselines().search(3)
    sinks = _offline()
    sinks.start(run.folder)
    sinks.finish(run.folder, "interrupted")
    assert not _warnings(caplog)
    run.ended("interrupted", "Ctrl-C")
    segments(run.folder)  # W&B's service has written all of it
    copy = tmp_path / "elsewhere"
    shutil.copytree(run.folder, copy)

    run.folder, run.trajectory = copy, Trajectory.open(copy)
    sinks = _offline()
    sinks.start(copy)
    run.on_record = sinks.record
    run.search(2).ended("interrupted", "Ctrl-C")
    sinks.finish(copy, "interrupted")
    first, second = segments(copy)
    assert first.run.run_id == second.run.run_id
    assert [row["record"] for row in second.evaluations] == [record.id for record in run.records]
    assert len(first.evaluations) == len(run.records) - 4
    (warning,) = _warnings(caplog)
    assert "only the newest" in warning


class FakeWandb:
    """As much of wandb as the sink calls; raises in the call named ``bad``."""

    def __init__(self, bad: str = "", *, logged_in: bool = True, known: int | None = None) -> None:
        self.bad, self.logged_in = bad, logged_in
        self.rows: list[dict[str, Any]] = []
        self.options: dict[str, Any] = {}
        self.resumed = known is not None
        self.summary: dict[str, Any] = {} if known is None else {"record": known}
        self.id, self.url = "abc", "https://wandb.invalid/abc"
        self.Settings = SimpleNamespace
        self.Image = str
        self.Table = lambda columns: SimpleNamespace(add_data=lambda *row: None)
        self.Artifact = lambda *args, **rest: SimpleNamespace(add_file=lambda path: None)
        self.finished: int | None = None
        self.alerts: list[dict[str, Any]] = []

    def _call(self, name: str) -> None:
        if name == self.bad:
            raise ConnectionError("the server is gone")

    def login(self, *, prompt: bool) -> bool:
        assert not prompt
        return self.logged_in

    def init(self, **options: Any) -> FakeWandb:
        self._call("init")
        self.options = options
        return self

    def define_metric(self, *args: Any, **rest: Any) -> None: ...

    def log(self, row: dict[str, Any]) -> None:
        self._call("log")
        self.rows.append(row)

    def log_artifact(self, artifact: Any, aliases: list[str]) -> None: ...

    def alert(self, **rest: Any) -> None:
        self.alerts.append(rest)

    def finish(self, exit_code: int) -> None:
        self._call("finish")
        self.finished = exit_code


def _online(monkeypatch: pytest.MonkeyPatch, wandb: FakeWandb) -> WandbSink:
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return WandbSink(TrackingConfig(wandb="online"))


@pytest.mark.parametrize("bad", ["init", "log", "finish"])
def test_a_failing_tracker_warns_once_and_changes_nothing(
    fake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, bad: str
) -> None:
    plain = fake("plain").baselines().search(5).finish()
    run = fake("tracked")
    sinks = SafeSinks([BackgroundSink(_online(monkeypatch, FakeWandb(bad)))])
    sinks.start(run.folder)
    run.on_record = sinks.record
    run.baselines().search(5).finish()
    sinks.finish(run.folder, "done")
    for name in ("trajectory.jsonl", "vectors.f64", "recipe.yaml", "result.json"):
        assert (run.folder / name).read_bytes() == (plain.folder / name).read_bytes()
    (warning,) = _warnings(caplog)
    assert "Weights & Biases FAILED" in warning
    assert "the server is gone" in warning


def test_online_resume_continues_where_the_server_is(fake, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fake().baselines().search(3)
    wandb = FakeWandb(known=run.records[-2].id)
    sink = _online(monkeypatch, wandb)
    sink.start(run.folder)
    run.on_record = sink.record
    run.search(1)
    run.finish()
    sink.finish(run.folder, "done")
    logged = [row["record"] for row in wandb.rows if "record" in row]
    assert logged == [record.id for record in run.records[-4:]]
    assert wandb.options["resume"] == "allow"
    assert wandb.rows[0]["evaluations"] == 3
    assert wandb.finished == 0


def test_an_alarm_alerts_once(fake, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fake(collapse_at=2)
    wandb = FakeWandb()
    sink = _online(monkeypatch, wandb)
    sink.start(run.folder)
    run.on_record = sink.record
    run.baselines().search(6).close()
    assert wandb.alerts == [{"title": "first: collapse", "text": "task sentiment collapses", "level": "WARN"}]


def test_skipped_events_are_made_up_for(fake, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fake()
    wandb = FakeWandb()
    sink = _online(monkeypatch, wandb)
    sink.start(run.folder)
    run.baselines().search(4)
    sink.record(run.records[0])
    sink.record(run.records[6])  # 1 to 5 were dropped
    run.ended("failed", "no value")
    sink.finish(run.folder, "no value")
    assert [row["record"] for row in wandb.rows if "record" in row] == [record.id for record in run.records]
    assert wandb.finished == 1


def test_online_without_a_key_asks_nothing(
    fake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = fake()
    sinks = SafeSinks([_online(monkeypatch, FakeWandb(logged_in=False))])
    sinks.start(run.folder)
    assert "`wandb login`" in caplog.text
    assert not sinks.active
    run.close()


def test_rows_know_generations_and_the_best(fake) -> None:
    run = fake(population=4).baselines().search(8).close()
    maker = RowMaker(run.variables)
    rows = [maker.row(record) for record in run.records]
    selects = [row for row in rows if row["phase"] == "select"]
    values = [record.value for record in run.records if record.phase == "search"][:4]
    assert selects[0]["generation/min"] == min(values)
    assert selects[0]["generation/mean"] == pytest.approx(sum(values) / 4)
    assert selects[1]["objective/best"] == min(row["select/value"] for row in selects)
    assert "generation/mean" not in rows[-2]


def test_config_holds_the_search_file_and_what_the_run_was_made_of(fake) -> None:
    run = fake().close()
    config = wandb_config(RunView.open(run.folder))
    assert config["objective"]["terms"][0]["name"] == "expert-kl"
    assert config["manifest"]["dimension"] == 96


def test_a_damaged_identity_gives_a_new_one(
    fake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = fake().close()
    (run.folder / "wandb.json").write_text("{")
    _online(monkeypatch, FakeWandb()).start(run.folder)
    assert "damaged" in caplog.text
    assert json.loads((run.folder / "wandb.json").read_text())["segments"] == 1
