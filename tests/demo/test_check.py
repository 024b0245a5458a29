"""The export check judges alike what is alike, and notices what is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from optmerge.demo.check import check_export, report_rows
from optmerge.demo.plan import demo_plan
from optmerge.demo.recipe import TrainingRecipe
from optmerge.demo.tasks import read_rows
from optmerge.demo.zoo import make_zoo
from tests.demo.test_assets import Copier

RECIPE = TrainingRecipe(steps=2, batch=4, warm_up=1, probe_examples=8, max_tokens=12)


def test_the_report_rows_are_the_first_by_content_hash() -> None:
    rows = [(f"text {number}", "x") for number in range(20)]
    assert report_rows(rows, 5) == report_rows(rows[::-1], 5)
    assert len(set(report_rows(rows, 5))) == 5


def test_a_reloaded_checkpoint_is_compared_text_by_text(shelf: Path, tmp_path: Path) -> None:
    plan = replace(demo_plan(quick=True), tasks=("sentiment",), recipe=RECIPE, report=10)
    zoo = make_zoo(tmp_path / "cache", plan.tasks, RECIPE, download=Copier(shelf))
    first = check_export(zoo.folder, plan, zoo, {"sentiment": np.ones(10)})
    assert first.texts == len(report_rows(read_rows(zoo.data("sentiment")), 10))
    right = round(first.accuracy["sentiment"] * 10)
    assert first.different == 10 - right
    assert first.same is (right == 10)
    assert ("NOT the same" in first.sentence) is not first.same
