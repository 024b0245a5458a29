"""A run as JSON lines: every record once, in order, with where the search stands."""

from __future__ import annotations

import io
import json
import math

from optmerge.tracking.events import EventSink


def test_a_whole_run(fake) -> None:
    out = io.StringIO()
    sink = EventSink(out)
    run = fake(evaluations=20)
    for done in range(1, 41):
        sink.progress("teachers", done, 40)
    sink.start(run.folder)
    run.on_record = sink.record
    run.baselines().search(12, fail=(3,))
    sink.finish(run.folder, "enough")
    run.close()
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [event["event"] for event in events[:11]] == ["progress"] * 11
    assert events[11] | {"run": ""} == {
        "event": "start",
        "run": "",
        "driver": events[11]["driver"],
        "evaluations": 0,
        "budget": {"evaluations": 20},
    }
    records = [event for event in events if event["event"] == "record"]
    assert [event["id"] for event in records] == [record.id for record in run.records]
    assert [event["error"] for event in records if event["error"]] == [r.error for r in run.records if r.error]
    assert records[-1]["evaluations"] == 12
    assert records[-1]["baseline"] == {"name": "method:iso-c:1.4", "value": 0.5}
    assert records[-1]["left"] > 0
    assert events[-1]["reason"] == "enough"


def test_alarms_and_numbers_that_are_none(fake) -> None:
    out = io.StringIO()
    sink = EventSink(out)
    run = fake().baselines()
    sink.start(run.folder)
    run.on_record = sink.record
    run.add(phase="select", driver="adam", split="select", value=0.4, per_task={"a": math.inf})
    run.add(phase="select", driver="adam", split="select", value=0.1, alarms={"collapse": "gone"})
    run.add(phase="select", driver="adam", split="select", value=0.1, alarms={"collapse": "gone"})
    run.close()
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    assert events[1]["per_task"] == {"a": None}
    assert [event for event in events if event["event"] == "alarm"] == [
        {"event": "alarm", "kind": "collapse", "sentence": "gone"}
    ]
