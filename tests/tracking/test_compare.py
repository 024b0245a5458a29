"""Several runs side by side."""

from __future__ import annotations

import json

import pytest

from optmerge.errors import RunError
from optmerge.runner.bootstrap import paired_bootstrap
from optmerge.runner.folder import RunFolder
from optmerge.tracking.compare import compare_runs
from optmerge.tracking.view import RunView


def test_settings_scores_and_paired_intervals(fake) -> None:
    a = fake("a").baselines().search(6).finish()
    b = (
        fake("b", seed=1, gain=0.1, settings_update={"driver": {"name": "cma", "sigma": 0.1}})
        .baselines()
        .search(9)
        .finish()
    )
    comparison = compare_runs([a.folder, b.folder])
    assert [run.name for run in comparison.runs] == ["a", "b"]
    assert [run.evaluations for run in comparison.runs] == [6, 9]
    assert comparison.settings["driver.name"] == ("adam", "cma")
    assert comparison.settings["driver.lr"] == (0.02, None)
    assert comparison.settings["seed"] == (0, 1)
    assert not any(key.startswith("output") for key in comparison.settings)
    (pair,) = comparison.pairs
    sides = []
    for run in (b, a):
        scores = RunFolder(run.folder).load_examples(RunView.open(run.folder).search_row.record)
        sides.append({task: arrays["accuracy"] for task, arrays in scores.items()})
    expected = paired_bootstrap(*sides, seed=0)
    assert (pair.difference, pair.low, pair.high) == (expected.mean, expected.low, expected.high)
    text = comparison.markdown()
    assert "driver.name" in text
    assert "0.827 [0.807, 0.847]" in text
    assert "| a " in text
    json.dumps(comparison.to_dict())


@pytest.mark.parametrize(
    ("options", "end", "reason"),
    [
        ({}, "running", "no report scores"),
        ({"labels": False}, "finish", "agreement"),
        ({"tasks": ("sentiment", "other")}, "finish", "different tasks"),
    ],
)
def test_what_cannot_be_paired_says_why(fake, options: dict, end: str, reason: str) -> None:
    a = fake("a").baselines().search(6).finish()
    b = fake("b", **options).baselines().search(6)
    b.finish() if end == "finish" else b.close()
    (pair,) = compare_runs([a.folder, b.folder]).pairs
    assert pair.difference is None
    assert reason in pair.reason
    assert "not paired" in compare_runs([a.folder, b.folder]).markdown()


def test_other_data_are_not_paired(fake) -> None:
    a, b = (fake(name).baselines().search(6).finish() for name in ("a", "b"))
    path = b.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"data": {"sentiment": "other", "author": "author-digest"}}))
    (pair,) = compare_runs([a.folder, b.folder]).pairs
    assert pair.reason == "the data of task sentiment differ"


def test_same_folder_names_are_told_apart(fake) -> None:
    a, b = (fake(name).close() for name in ("x/run", "y/run"))
    comparison = compare_runs([a.folder, b.folder])
    assert [run.name for run in comparison.runs] == ["x/run", "y/run"]
    assert "same settings" in comparison.markdown()


def test_nothing_to_compare() -> None:
    with pytest.raises(RunError, match="at least one"):
        compare_runs([])


def test_what_is_not_as_in_the_first_run_is_marked(fake) -> None:
    runs = [fake(name, seed=seed).search(2).close().folder for name, seed in (("a", 0), ("b", 1), ("c", 0))]
    (line,) = (line for line in compare_runs(runs).markdown().splitlines() if line.startswith("| seed"))
    assert [cell.strip() for cell in line.split("|")[1:-1]] == ["seed", "0", "**1**", "0"]
