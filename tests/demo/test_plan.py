"""The plan: its search files are valid, share their baselines, and its times add up."""

from __future__ import annotations

from pathlib import Path

import pytest

from optmerge.config.load import build_config
from optmerge.demo.plan import demo_plan, search_settings, time_plan
from optmerge.demo.zoo import Zoo


@pytest.mark.parametrize("quick", [False, True])
def test_every_search_is_a_valid_search_file(quick: bool, tmp_path: Path) -> None:
    plan = demo_plan(quick=quick)
    zoo = Zoo(tmp_path, plan.tasks)
    for search in plan.searches:
        config = build_config(search_settings(plan, search, zoo, tmp_path), root=tmp_path)
        assert config.budget.evaluations == search.evaluations
        assert config.splits.report == plan.report
        same = search.objective == plan.searches[0].objective
        assert [method.name for method in config.baselines.methods] == (["iso-c"] if same else [])
        assert config.objective.terms[0].name == search.objective


def test_the_plan_has_the_searches_that_the_table_claims_about() -> None:
    names = [search.name for search in demo_plan(quick=False).searches]
    assert names == ["adam", "adam-iso-c", "cma", "optuna", "entropy"]


@pytest.mark.parametrize(("quick", "most"), [(False, 720), (True, 120)])
def test_the_time_plan_keeps_its_promise(
    quick: bool, most: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    plan = demo_plan(quick=quick)
    parts = time_plan(plan, Zoo(tmp_path, plan.tasks))
    assert parts[0][0].startswith("train")
    assert sum(seconds for _, seconds in parts) < most


def test_what_is_finished_takes_no_time(tmp_path: Path) -> None:
    plan = demo_plan(quick=True)
    zoo = Zoo(tmp_path, plan.tasks)
    for task in plan.tasks:
        zoo.expert(task).mkdir(parents=True)
        (zoo.expert(task) / "config.json").write_text("{}")
    parts = time_plan(plan, zoo, frozenset(search.name for search in plan.searches))
    assert [what for what, _ in parts] == ["export, reload, compare"]
