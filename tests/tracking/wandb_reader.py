"""Reads an offline W&B run back: LevelDB's log framing, and W&B's own message types."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32768
HEADER = 7


def messages(path: Path) -> Iterator[Any]:
    """The records of a ``.wandb`` file, as `wandb.proto.wandb_internal_pb2.Record`."""
    from wandb.proto import wandb_internal_pb2

    content = path.read_bytes()
    assert content[:4] == b":W&B"
    at, parts = HEADER, b""
    while at + HEADER <= len(content):
        if BLOCK - at % BLOCK < HEADER:  # a block's last bytes hold no header
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + HEADER])
        if kind == 0:
            return
        chunk = content[at + HEADER : at + HEADER + length]
        at += HEADER + length
        parts = chunk if kind in (1, 2) else parts + chunk  # whole or first part; middle or last part
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record


class OfflineRun:
    """What one offline segment holds."""

    def __init__(self, path: Path) -> None:
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.config: dict[str, Any] = {}
        self.metrics: list[Any] = []
        self.artifacts: list[Any] = []
        self.alerts: list[Any] = []
        self.run: Any = None
        self.exit_code: int | None = None
        for message in messages(path):
            kind = message.WhichOneof("record_type")
            if kind == "history":
                self.history.append(_items(message.history.item))
            elif kind == "summary":
                self.summary |= _items(message.summary.update)
            elif kind == "run":
                self.run = message.run
                self.config |= _items(message.run.config.update)
            elif kind == "metric":
                self.metrics.append(message.metric)
            elif kind == "artifact":
                self.artifacts.append(message.artifact)
            elif kind == "alert":
                self.alerts.append(message.alert)
            elif kind == "exit":
                self.exit_code = message.exit.exit_code

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The rows that are evaluations."""
        return [row for row in self.history if "record" in row]


def _items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def segments(run: Path, *, patience: float = 60.0) -> list[OfflineRun]:
    """The offline segments below a run folder, oldest first.

    W&B's service writes its file in a process of its own, and on a busy machine it lags behind ``finish()``: the newest
    segment is read again until its exit is there, for at most ``patience`` seconds.
    """
    deadline = time.monotonic() + patience
    paths = sorted(run.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    found = [OfflineRun(path) for path in paths]
    while found and found[-1].exit_code is None and time.monotonic() < deadline:
        time.sleep(0.2)
        found[-1] = OfflineRun(paths[-1])
    return found
