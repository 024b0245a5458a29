"""The table and its words, from run folders with made-up scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from optmerge.demo.plan import DemoPlan, demo_plan
from optmerge.demo.table import DemoTable, make_table
from optmerge.runner.folder import RunFolder
from optmerge.tracking.view import RunView

PLAN = replace(demo_plan(quick=True), report=200, conclusive=True)
BASELINES = {
    "base": ("base", 1.0, 0.50),
    "expert:sentiment": ("expert", 1.3, 0.60),
    "expert:tweets": ("expert", 1.4, 0.60),
    "average": ("uniform", 0.8, 0.62),
    "uniform:0.2": ("uniform", 0.7, 0.64),
    "uniform:0.4": ("uniform", 0.75, 0.66),
    "method:iso-c:1": ("iso-c", 0.6, 0.70),
    "method:iso-c:1.4": ("iso-c", 0.5, 0.70),
}
GOOD = {
    "adam": (0.4, 0.80),
    "adam-iso-c": (0.3, 0.85),
    "cma": (0.65, 0.64),
    "optuna": (0.66, 0.5),
    "entropy": (0.1, 0.5),
}


def fake_run(folder: Path, plan: DemoPlan, search: str, scores: Mapping[str, tuple[float, float]]) -> RunView:
    """A finished run: every scored thing is right on the first share of the report texts."""
    folder.mkdir(parents=True)
    (folder / "search.yaml").write_text("version: 1\n")
    run = RunFolder(folder)
    families = {name: (family, select, share) for name, (family, select, share) in BASELINES.items()}
    families[search] = ("search", *scores[search])
    chosen: dict[str, str] = {}
    for name, (family, select, _) in families.items():
        if family not in chosen or select < families[chosen[family]][1]:
            chosen[family] = name
    rows = []
    for record, (name, (family, select, share)) in enumerate(families.items()):
        right = (np.arange(plan.report) < share * plan.report).astype(float)
        run.save_examples(record, {task: {"accuracy": right} for task in plan.tasks})
        rows.append(
            {
                "name": name,
                "kind": "search" if family == "search" else "baseline",
                "family": family,
                "record": record,
                "select": select,
                "report": {task: {"accuracy": float(right.mean())} for task in plan.tasks},
                "mean": float(right.mean()),
                "metric": "accuracy",
                "evaluations": 8,
                "seconds": 2.0,
                "chosen": chosen[family] == name,
                "oracle": False,
            }
        )
    (folder / "result.json").write_text(json.dumps({"status": "finished", "metric": "accuracy", "rows": rows}))
    return RunView.open(folder)


def make(folder: Path, scores: Mapping[str, tuple[float, float]]) -> DemoTable:
    return make_table(PLAN, {s.name: fake_run(folder / s.name, PLAN, s.name, scores) for s in PLAN.searches})


def test_rivals_are_those_that_select_chooses(tmp_path: Path) -> None:
    table = make(tmp_path, GOOD)
    assert (table.uniform, table.method) == ("uniform:0.2", "method:iso-c:1.4")
    assert [line.name for line in table.lines][:3] == ["base", "experts", "expert:sentiment"]
    assert table.line("uniform:0.4").title == "uniform 0.4 (oracle)"
    assert table.line("experts").mean == pytest.approx(0.6)
    assert table.line("adam").intervals["uniform:0.2"].mean == pytest.approx(0.16, abs=0.01)


def test_the_winner_is_the_lowest_expert_kl_on_select(tmp_path: Path) -> None:
    assert make(tmp_path, GOOD).winner.name == "adam-iso-c", "entropy's lower number is another objective"


def test_words_follow_the_intervals(tmp_path: Path) -> None:
    verdicts = make(tmp_path, GOOD).verdicts()
    assert verdicts[0].startswith("Adam, tensor-wise (0.800) beats (")
    assert "is not distinguishable from (0.0 [0.0, 0.0] points) the uniform coefficient" in verdicts[2]
    assert "is worse than" in verdicts[3]
    assert [verdict.partition(":")[0] for verdict in verdicts[5:]] == ["Holds", "Holds"]


def test_a_claim_that_fails_is_said_to_fail(tmp_path: Path) -> None:
    table = make(tmp_path, GOOD | {"adam": (0.4, 0.6), "adam-iso-c": (0.3, 0.6)})
    assert [claim.holds for claim in table.claims()] == [False, False]
    assert table.verdicts()[-1].startswith("FAILS: the search with Iso-C's direction is not below Iso-C")


def test_a_small_demo_claims_nothing(tmp_path: Path) -> None:
    plan = replace(PLAN, conclusive=False)
    table = make_table(plan, {s.name: fake_run(tmp_path / s.name, plan, s.name, GOOD) for s in plan.searches})
    assert table.claims() == []
    assert "too small to tell" in table.verdicts()[-1]


def test_the_markdown_has_every_line_and_marks_entropy(tmp_path: Path) -> None:
    table = make(tmp_path, GOOD)
    text = table.markdown()
    assert all(f"| {line.title}" in text for line in table.lines)
    assert "0.100 (entropy)" in text
    assert "**0.850**" in text
