"""Searches without labels: permuting or deleting the label column changes no bit of what is searched."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optmerge.config.load import build_config
from optmerge.records import Record, Trajectory
from optmerge.runner.search import Run, search

Settings = Callable[..., dict[str, Any]]


def changed(settings: dict[str, Any], folder: Path, change: str) -> dict[str, Any]:
    """The search with its data copied into ``folder`` and its labels changed."""
    folder.mkdir()
    for task in settings["tasks"].values():
        rows = [json.loads(line) for line in Path(task["data"]).read_text().splitlines()]
        labels = [row.pop("label") for row in rows]
        if change == "permuted":
            random.Random(7).shuffle(labels)
        if change != "deleted":
            rows = [{**row, "label": label} for row, label in zip(rows, labels, strict=True)]
        path = folder / Path(task["data"]).name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        task["data"] = str(path)
    return settings


def searched(run: Run) -> list[Any]:
    """Everything that steers a search, bit for bit: fit and select of baselines and candidates."""

    def facts(record: Record) -> tuple[Any, ...]:
        vectors = [None if vector is None else vector.tolist() for vector in (record.vector, record.gradient)]
        return record.phase, record.split, record.name, record.value, record.per_task, *vectors

    return [facts(record) for record in Trajectory.read(run.folder).records if record.split != "report"]


@pytest.mark.parametrize("driver", ["adam", "cma"])
def test_labels_change_no_selected_coefficient(settings: Settings, tmp_path: Path, driver: str) -> None:
    runs = {}
    for change in ("none", "permuted", "deleted"):
        made = settings(
            driver={"name": driver},
            splits={"fit": 12, "select": 8, "report": 20},
            baselines={"grid": [0.3], "method_grid": [1.0]},
            budget={"evaluations": 4},
        )
        folder = tmp_path / change
        runs[change] = search(build_config(changed(made, folder, change), root=folder), root=folder)
    assert searched(runs["permuted"]) == searched(runs["none"])
    assert searched(runs["deleted"]) == searched(runs["none"])
    coefficients = {
        change: (run.folder / "recipe.yaml").read_text().split("created")[0] for change, run in runs.items()
    }
    assert coefficients["permuted"] == coefficients["none"] == coefficients["deleted"]
    # The report does see them: that is what they are for.
    assert [runs[change].result["metric"] for change in runs] == ["accuracy", "accuracy", "agreement"]
    assert runs["none"].result["rows"] != runs["permuted"].result["rows"]


def test_a_transductive_search_says_so(settings: Settings, tmp_path: Path) -> None:
    made = settings(
        splits={"fit": 12, "select": 8, "transductive": True},
        baselines={"grid": [0.3], "method_grid": [1.0]},
        budget={"evaluations": 2},
    )
    run = search(build_config(made, root=tmp_path), root=tmp_path)
    assert run.result["transductive"] is True
    manifest = json.loads((run.folder / "manifest.json").read_text())
    assert manifest["splits"]["a"] == {"fit": 12, "select": 8, "report": 20}
