"""The W&B sink: offline runs are read back; a tracker that fails never hurts a search."""

from __future__ import annotations

import io
import json
import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from optmerge.config.schema import TrackingConfig
from optmerge.records import Record, Trajectory
from optmerge.tracking.report import ReportSink
from optmerge.tracking.sinks import BackgroundSink, SafeSinks
from optmerge.tracking.tracker_sink import TrackerSink
from optmerge.tracking.view import RunView
from optmerge.tracking.wandb_facts import config, group
from optmerge.tracking.wandb_rows import RowMaker
from optmerge.tracking.wandb_tracker import WandbTracker
from tests.tracking.wandb_reader import segments


@pytest.fixture(autouse=True)
def own_wandb_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb-home"))
    # The last, so that a child process has a service of its own.
    for name in ("WANDB_MODE", "WANDB_RUN_ID", "WANDB_DIR", "WANDB_API_KEY", "WANDB_SERVICE"):
        monkeypatch.delenv(name, raising=False)


def _offline() -> SafeSinks:
    return SafeSinks([BackgroundSink(TrackerSink(WandbTracker(TrackingConfig(wandb="offline", project="p"))))])


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_offline_run_read_back(fake, caplog: pytest.LogCaptureFixture) -> None:
    run = fake(
        evaluations=12, settings_update={"experts": {"a.b": "zoo/a"}, "tracking": {"tags": ["mine"], "group": "trials"}}
    )
    sinks = SafeSinks([ReportSink(), *_offline().active])
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
    kept = {artifact.type: artifact for artifact in segment.artifacts if artifact.type in ("recipe", "report")}
    contents = {kind: {entry.path for entry in artifact.manifest.contents} for kind, artifact in kept.items()}
    assert contents["recipe"] == {"recipe.yaml", "search.yaml", "manifest.json"}
    assert {"report.html", "report.md", "coefficients.png", "trajectory.png"} <= contents["report"]
    for kind, artifact in kept.items():
        assert artifact.name == f"{kind}-{segment.run.run_id}"
        assert set(artifact.aliases) == {"best", "latest"}
    assert segment.run.run_id == json.loads((run.folder / "wandb.json").read_text())["id"]
    assert (segment.run.project, segment.run.job_type, segment.run.display_name) == ("p", "search", "first")
    assert segment.run.run_group == "trials"
    assert {"adam", "tensor-wise", "expert-kl", "base", "mine"} == set(segment.run.tags)
    assert segment.config["driver"] == {"name": "adam", "lr": 0.02, "batch": None}
    assert segment.config["experts"] == {"a_b": "zoo/a"}
    assert segment.summary["baseline/base"] == pytest.approx(0.776)
    assert segment.summary["result/accuracy"] == pytest.approx(0.827)
    assert segment.summary["status"] == "finished"
    assert segment.summary["seconds/merge"] == pytest.approx(0.1 * len(records))
    assert segment.history[-1]["coefficients/_type"] == "image-file"
    tables = {key.partition("/")[0] for row in segment.history for key, kind in row.items() if kind == "table-file"}
    assert tables == {"variables", "results", "best-coefficients", "trajectory"}
    assert all(row["memory/process"] > 0 for row, _ in search)
    for part, raised in {"driver": 1.0, "merge": 3.0, "evaluate": 20.0}.items():
        assert segment.summary[f"memory/{part}"] == raised
        assert all(row[f"memory/{part}"] == raised for row in rows)
    (alert,) = segment.alerts
    assert (alert.title, alert.level) == ("first finished", "INFO")
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


class FakeArtifact:
    """An artifact's name and files."""

    def __init__(self, name: str, **rest: Any) -> None:
        self.name, self.rest = name, rest
        self.paths: list[str] = []
        self.written: dict[str, io.StringIO] = {}

    def add_file(self, path: str) -> None:
        self.paths.append(Path(path).name)

    @contextmanager
    def new_file(self, name: str) -> Iterator[io.StringIO]:
        self.written[name] = io.StringIO()
        yield self.written[name]


class FakeWandb:
    """As much of wandb as the sink calls; raises in the call named ``bad``."""

    def __init__(self, bad: str = "", *, logged_in: bool = True, known: int | None = None) -> None:
        self.bad, self.logged_in = bad, logged_in
        self.rows: list[dict[str, Any]] = []
        self.options: dict[str, Any] = {}
        self.resumed = known is not None
        self.summary: dict[str, Any] = {} if known is None else {"record": known}
        self.id, self.project, self.url = "abc", "p", "https://wandb.invalid/abc"
        self.Settings = SimpleNamespace
        self.Image = str
        self.Table = SimpleNamespace
        self.Artifact = FakeArtifact
        self.artifacts: list[tuple[FakeArtifact, tuple[str, ...]]] = []
        self.used: list[FakeArtifact] = []
        self.preempting = False
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

    def log_artifact(self, artifact: FakeArtifact, aliases: list[str]) -> None:
        self._call("log_artifact")
        self.artifacts.append((artifact, tuple(aliases)))

    def use_artifact(self, artifact: FakeArtifact) -> None:
        self.used.append(artifact)

    def mark_preempting(self) -> None:
        self.preempting = True

    def alert(self, **rest: Any) -> None:
        self.alerts.append(rest)

    def finish(self, exit_code: int) -> None:
        self._call("finish")
        self.finished = exit_code


def _online(monkeypatch: pytest.MonkeyPatch, wandb: FakeWandb, *, refresh: float = 1e9) -> TrackerSink:
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return TrackerSink(WandbTracker(TrackingConfig(wandb="online")), refresh=refresh)


@pytest.mark.parametrize("bad", ["init", "log", "log_artifact", "finish"])
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
    assert "`optmerge sync RUN`" in warning


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
    assert json.loads((run.folder / "wandb.json").read_text())["url"] == wandb.url


def test_an_alarm_alerts_once(fake, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fake(collapse_at=2)
    wandb = FakeWandb()
    sink = _online(monkeypatch, wandb)
    sink.start(run.folder)
    run.on_record = sink.record
    run.baselines().search(6).close()
    assert wandb.alerts == [{"title": "first: collapse", "text": "task sentiment collapses", "level": "ERROR"}]


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
    assert wandb.finished == 3
    assert wandb.alerts[-1] == {"title": "first failed", "text": "no value", "level": "ERROR"}


def test_a_long_name_does_not_make_an_alert_too_long(fake, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fake("a" * 100, collapse_at=0)
    wandb = FakeWandb()
    sink = _online(monkeypatch, wandb)
    sink.start(run.folder)
    run.on_record = sink.record
    run.baselines().search(1).ended("failed", "no value")
    sink.finish(run.folder, "no value")
    assert len(wandb.alerts) == 2
    assert all(len(alert["title"]) < 64 for alert in wandb.alerts)  # W&B refuses longer ones


def test_an_interrupted_run_is_marked_so_and_knows_its_models(fake, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fake()
    wandb = FakeWandb()
    sink = _online(monkeypatch, wandb)
    sink.start(run.folder)
    run.on_record = sink.record
    run.baselines().search(1).ended("interrupted", "Ctrl-C")
    sink.finish(run.folder, "Ctrl-C")
    assert wandb.preempting
    assert wandb.finished == 130
    assert not wandb.alerts
    (model,) = wandb.used
    assert (model.name, model.rest["type"]) == ("model-zoo-base", "model")
    assert json.loads(model.written["model.json"].getvalue())["sha256"] == "0" * 64


def test_baselines_are_in_the_summary_as_soon_as_they_are_done(fake, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fake()
    wandb = FakeWandb()
    sink = _online(monkeypatch, wandb)
    sink.start(run.folder)
    run.on_record = sink.record
    run.baselines()
    assert "baseline/base" not in wandb.summary
    run.search(1).close()
    assert wandb.summary["baseline/base/select"] == 1.0
    assert wandb.summary["status"] == "interrupted"  # nobody holds the folder of a run made by hand


@pytest.mark.parametrize(("refresh", "drawn"), [(0.0, True), (1e9, False)])
def test_new_bests_are_drawn_while_the_search_goes_on(
    fake, monkeypatch: pytest.MonkeyPatch, refresh: float, drawn: bool
) -> None:
    run = fake()
    wandb = FakeWandb()
    sink = _online(monkeypatch, wandb, refresh=refresh)
    sink.start(run.folder)
    run.on_record = sink.record
    run.baselines().search(4).close()
    pictures = [row for row in wandb.rows if "coefficients" in row]
    assert bool(pictures) == drawn
    assert all("record" not in row for row in pictures)


def test_what_the_driver_takes_is_told_beside_merging_and_evaluating(fake) -> None:
    run = fake().baselines().search(3).close()
    maker = RowMaker(run.variables)
    rows = [maker.row(record) for record in run.records]
    search = [row for row in rows if row["phase"] in ("search", "select")]
    assert "time/driver" not in search[0]  # what lies before it is no driver's
    assert all(row["time/driver"] == pytest.approx(0.0) for row in search[1:])  # 0.7 s apart, of 0.1 s and 0.6 s
    assert (search[1]["time/merge"], search[1]["time/evaluate"]) == (0.1, 0.6)


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


def test_rows_have_what_the_driver_says_of_itself_and_what_is_added_to_all_tasks() -> None:
    said = {"info": {"sigma": 0.1, "axis_ratio": 3.0}, "parts": {"anchor": 0.2}}
    row = RowMaker(()).row(Record(0, "search", "cma", "fit", 1.0, **said))
    assert (row["driver/sigma"], row["driver/axis_ratio"], row["part/anchor"]) == (0.1, 3.0, 0.2)


def test_config_holds_the_search_file_and_what_the_run_was_made_of(fake) -> None:
    run = fake().close()
    found = config(RunView.open(run.folder))
    assert found["objective"]["terms"][0]["name"] == "expert-kl"
    assert found["manifest"]["dimension"] == 96
    assert found["manifest"]["models"]["base"]["sha256"] == "0" * 64


def test_a_sweep_gives_the_id(fake, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fake().close()
    wandb = FakeWandb()
    wandb.id = "given-by-the-agent"  # whatever id `init` was asked for
    _online(monkeypatch, wandb).start(run.folder)
    assert json.loads((run.folder / "wandb.json").read_text())["id"] == "given-by-the-agent"


def test_runs_on_a_shared_study_are_grouped_by_it(fake) -> None:
    study = {"driver": {"name": "optuna", "storage": "sqlite:///x.db", "study": "together"}}
    assert group(RunView.open(fake("a", settings_update=study).close().folder)) == "together"
    study["tracking"] = {"group": "mine"}
    assert group(RunView.open(fake("b", settings_update=study).close().folder)) == "mine"


def test_a_damaged_identity_gives_a_new_one(
    fake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = fake().close()
    (run.folder / "wandb.json").write_text("{")
    _online(monkeypatch, FakeWandb()).start(run.folder)
    assert "damaged" in caplog.text
    assert json.loads((run.folder / "wandb.json").read_text())["segments"] == 1
