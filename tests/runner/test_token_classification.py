"""Searches over token classifiers with heads of their own."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from optmerge.cli.tryout import Tryout
from optmerge.config.load import build_config
from optmerge.records import Trajectory
from optmerge.runner.search import search
from tests.tiny import LABELS, save_family, sentences
from tests.zoo import zoo_settings


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny token classifiers with 2 and 3 tags, and words with tags for each."""
    folder = tmp_path_factory.mktemp("tags")
    save_family("bert-tags", folder, scale=0.3)
    for number, (name, classes) in enumerate(LABELS.items()):
        lines = [text.split() for text in sentences(90, seed=number)]
        rows = [{"words": words, "tags": [f"LABEL_{len(word) % classes}" for word in words]} for words in lines]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def settings(zoo: Path, **changes: Any) -> dict[str, Any]:
    made = zoo_settings(zoo, **changes)
    for task in made["tasks"].values():
        task |= {"text": "words", "label": "tags"}
    return made


@pytest.mark.parametrize(
    ("term", "driver"),
    [("expert-kl", {"name": "adam", "lr": 0.05}), ("cross-entropy", {"name": "adam"}), ("accuracy", {"name": "cma"})],
)
def test_every_objective_can_be_searched(zoo: Path, tmp_path: Path, term: str, driver: dict[str, Any]) -> None:
    made = settings(zoo, objective={"terms": [{"name": term}]}, driver=driver, budget={"evaluations": 16})
    run = search(build_config(made, root=tmp_path), root=tmp_path)
    records = [record for record in Trajectory.read(run.folder).records if record.phase == "search"]
    assert all(record.value is not None and math.isfinite(record.value) for record in records)
    assert run.recipe is not None
    assert run.recipe.heads == "own"
    assert run.result["metric"] == "accuracy"
    assert run.result["labels"] == {"a": True, "b": True}
    rows = {row["name"]: row for row in run.result["rows"]}
    assert 0 < rows["expert:a"]["report"]["a"]["accuracy"] < 1
    if term == "expert-kl":
        fit = [record.value for record in records if record.split == "fit"]
        assert fit[-1] < 0.97 * fit[0]


def test_without_labels_the_report_shows_agreement(zoo: Path, tmp_path: Path) -> None:
    made = settings(zoo)
    for task in made["tasks"].values():
        del task["label"]
    run = search(build_config(made, root=tmp_path), root=tmp_path)
    assert run.result["metric"] == "agreement"
    rows = {row["name"]: row for row in run.result["rows"]}
    assert rows["expert:a"]["report"]["a"]["agreement"] == 1.0
    answers = list(Tryout.open(run.folder).answers(["w1 w22"]))
    assert {answer.head for answer in answers} == {"a", "b"}
    assert all(re.fullmatch(r"w1/LABEL_\d w22/LABEL_\d", answer.says) for answer in answers)
