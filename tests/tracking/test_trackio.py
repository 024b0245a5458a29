"""A search at trackio, with a stand-in that has the calls of trackio 0.43 which the tracker makes."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
from pydantic import ValidationError

from optmerge.config.schema import TrackingConfig
from optmerge.errors import MissingExtraError
from optmerge.tracking.sinks import BackgroundSink, SafeSinks
from optmerge.tracking.tracker_sink import TrackerSink
from optmerge.tracking.trackio_tracker import TrackioTracker


class Trackio(ModuleType):
    """init, log and finish; it prints, as trackio does."""

    def __init__(self) -> None:
        super().__init__("trackio")
        self.runs: list[dict[str, Any]] = []
        self.rows: list[list[dict[str, Any]]] = []
        self.finished = 0

    def init(
        self, project: str, name: str | None = None, group: str | None = None, config: dict[str, Any] | None = None
    ) -> None:
        print(f"* Trackio project initialized: {project}")  # noqa: T201
        self.runs.append({"project": project, "name": name, "group": group, "config": config})
        self.rows.append([])

    def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self.rows[-1].append(metrics)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def trackio(monkeypatch: pytest.MonkeyPatch) -> Trackio:
    module = Trackio()
    monkeypatch.setitem(sys.modules, "trackio", module)
    return module


def _sinks() -> SafeSinks:
    return SafeSinks([BackgroundSink(TrackerSink(TrackioTracker(TrackingConfig(to="trackio", project="p"))))])


def test_every_evaluation_is_there(
    fake, trackio: Trackio, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run = fake(settings_update={"tracking": {"group": "trials"}})
    sinks = _sinks()
    sinks.start(run.folder)
    run.on_record = sinks.record
    run.baselines().search(4).finish()
    sinks.finish(run.folder, "done")
    assert not caplog.records
    (made,) = trackio.runs
    assert (made["project"], made["name"], made["group"]) == ("p", "first", "trials")
    assert made["config"]["driver"]["name"] == "adam"
    assert [row["record"] for row in trackio.rows[0]] == [record.id for record in run.records]
    assert trackio.finished == 1
    assert capsys.readouterr().out == ""  # stdout is for facts


def test_a_resumed_search_is_a_run_of_its_own_with_everything(fake, trackio: Trackio) -> None:
    run = fake().baselines().search(2)
    for _ in range(2):
        sinks = _sinks()
        sinks.start(run.folder)
        run.on_record = sinks.record
        run.search(1)
        sinks.finish(run.folder, "interrupted")
    assert [made["name"] for made in trackio.runs] == ["first", "first-2"]
    assert [row["record"] for row in trackio.rows[1]] == [record.id for record in run.records]
    run.close()


def test_without_the_extra_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'optmerge\[trackio\]'"):
        TrackioTracker(TrackingConfig(to="trackio"))


def test_one_tracker_at_a_time() -> None:
    with pytest.raises(ValidationError, match="Leave wandb out"):
        TrackingConfig(to="trackio", wandb="online")
