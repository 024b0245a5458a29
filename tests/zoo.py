"""Zoos small enough to search in seconds: tiny models made from one base, and texts for each expert.

settings = zoo_settings(make_zoo(tmp_path, "bert"), budget={"evaluations": 5})
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from optmerge.records import Record, Trajectory
from tests.tiny import LABELS, save_family, sentences


def make_zoo(folder: Path, kind: str, **options: Any) -> Path:
    """base/, one/, two/ and one.jsonl, two.jsonl below ``folder``; experts far enough apart to disagree.

    ``options`` go to `save_family`.
    """
    save_family(kind, folder, scale=0.3, **options)
    for number, (name, classes) in enumerate(LABELS.items()):
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as handle:
            for text in sentences(90, seed=number):
                handle.write(json.dumps({"text": text, "label": f"LABEL_{len(text) % classes}"}) + "\n")
    return folder


def zoo_settings(zoo: Path, **changes: Any) -> dict[str, Any]:
    """A search file's content over a zoo; keyword arguments replace keys."""
    settings: dict[str, Any] = {
        "base": str(zoo / "base"),
        "experts": {"a": str(zoo / "one"), "b": str(zoo / "two")},
        "tasks": {
            "a": {"expert": "a", "data": str(zoo / "one.jsonl"), "label": "label"},
            "b": {"expert": "b", "data": str(zoo / "two.jsonl"), "label": "label"},
        },
        "space": {"granularity": "layer-wise"},
        "objective": {"terms": [{"name": "expert-kl"}]},
        "driver": {"name": "adam", "lr": 0.05},
        "splits": {"fit": 24, "select": 16, "report": 30},
        "baselines": {"grid": [0.3, 0.6], "method_grid": [1.0]},
        "budget": {"evaluations": 8},
        "device": "cpu",
        "output": "run",
    } | changes
    # A front is scored in the tests that are about it.
    return settings | {"budget": {"front": 0, **settings["budget"]}}


def facts(run: Path) -> list[Any]:
    """What must be equal between an interrupted and an uninterrupted run: every record, clocks aside."""

    def one(record: Record) -> Any:
        vectors = [None if v is None else v.tolist() for v in (record.vector, record.gradient)]
        names = (record.id, record.stage, record.phase, record.split, record.name, record.examples)
        return *names, record.value, record.metrics, vectors

    return [one(record) for record in Trajectory.read(run).records]
