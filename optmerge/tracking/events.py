r"""A run as JSON lines, for programs that watch it: what ``--json`` prints on stderr where that is no terminal.

    sink = EventSink(sys.stderr)
    # {"event": "start", "run": "runs/first", "driver": "adam", "evaluations": 0, "budget": {...}}
    # {"event": "progress", "stage": "teachers", "done": 4, "total": 6}
    # {"event": "record", "id": 7, "phase": "search", "value": 0.41, "evaluations": 3, "best": 0.38, "left": 95.2, ...}
    # {"event": "alarm", "kind": "collapse", "sentence": "..."}
    # {"event": "finish", "reason": "..."}

Every line is one object; numbers that are not finite are null.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TextIO

from optmerge.records import Record
from optmerge.tracking.standing import Standing
from optmerge.tracking.view import RunView


class EventSink:
    """Writes an event per record, and per tenth of long work.

    Args:
        out: Where to.
    """

    label = "the events"

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._shares: dict[str, int] = {}
        self.standing = Standing()

    def start(self, run: Path) -> None:
        """Say what is begun, or gone on with."""
        view = RunView.open(run, vectors=False)
        self.standing.begin(view)
        budget = {key: value for key, value in view.budget.items() if value is not None}
        self._write("start", run=str(run), driver=view.driver, evaluations=view.evaluations, budget=budget)

    def record(self, record: Record) -> None:
        """Say what was measured, and where the search stands after it."""
        standing = self.standing
        known = set(standing.alarms)
        standing.take(record)
        best, baseline = standing.best, standing.baseline
        self._write(
            "record",
            id=record.id,
            phase=record.phase,
            split=record.split,
            name=record.name,
            value=record.value,
            error=record.error,
            per_task=dict(record.per_task),
            stage=record.stage,
            evaluations=standing.evaluations,
            best=None if best is None else best.value,
            baseline=None if baseline is None else {"name": baseline.name, "value": baseline.value},
            rate=standing.rate,
            left=standing.seconds_left,
            elapsed=record.elapsed,
        )
        for kind in standing.alarms.keys() - known:
            self._write("alarm", kind=kind, sentence=standing.alarms[kind])

    def progress(self, stage: str, done: int, total: int | None) -> None:
        """Say how far long work is."""
        share = 10 * done // total if total else 0
        if self._shares.get(stage) != share:
            self._shares[stage] = share
            self._write("progress", stage=stage, done=done, total=total)

    def finish(self, run: Path, reason: str) -> None:
        """Say why it ended."""
        self._write("finish", run=str(run), reason=reason)

    def _write(self, event: str, **facts: Any) -> None:
        self._out.write(json.dumps({"event": event} | _finite(facts), allow_nan=False) + "\n")
        self._out.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
