"""Where evaluations run: what the search file says, and what drivers cannot do there."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from optmerge.config.executor import ExecutorConfig, executor_problems
from optmerge.config.schema import SearchConfig

SEARCH = {
    "base": "base",
    "experts": {"a": "a"},
    "tasks": {"a": {"expert": "a", "data": "a.jsonl"}},
    "objective": {"terms": [{"name": "expert-kl"}]},
}


def test_a_search_runs_in_this_process_by_default() -> None:
    config = SearchConfig.model_validate(SEARCH)
    assert config.executor == ExecutorConfig()
    assert config.executor.in_process
    assert config.executor.deterministic


@pytest.mark.parametrize("changes", [{"workers": 2}, {"name": "ray"}, {"timeout": 60.0}])
def test_it_does_not_where_there_is_a_worker_to_end_or_to_spread_over(changes: dict[str, Any]) -> None:
    assert not ExecutorConfig.model_validate(changes).in_process


def test_a_bare_name_is_enough() -> None:
    config = SearchConfig.model_validate(SEARCH | {"executor": "ray"})
    assert config.executor == ExecutorConfig(name="ray")


@pytest.mark.parametrize("address", ["head", "ray://head:10001", "head:gcs"])
def test_an_address_has_a_host_and_a_port(address: str) -> None:
    with pytest.raises(ValidationError, match=r"expected auto .* or host:port of the cluster's head"):
        ExecutorConfig(name="ray", address=address)


def test_an_address_belongs_to_a_cluster() -> None:
    with pytest.raises(
        ValidationError, match="address 'head:6379' is that of a Ray cluster, and the executor is local"
    ):
        ExecutorConfig(workers=2, address="head:6379")


@pytest.mark.parametrize(
    ("driver", "why"),
    [
        ({"name": "adam"}, "adam makes each step from the gradient at the last"),
        ({"name": "cma", "batch": 8}, "cma with a batch compares"),
        ({"name": "optuna", "pruner": "successive-halving"}, "optuna with a pruner decides"),
        ({"name": "optuna", "storage": "sqlite:///study.db"}, "optuna with a storage does one trial"),
    ],
)
def test_a_driver_of_steps_cannot_do_without_generations(driver: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=f"executor.deterministic is false, and {why}"):
        SearchConfig.model_validate(SEARCH | {"driver": driver, "executor": {"deterministic": False}})


def test_a_schedule_may_have_steps_before_a_population() -> None:
    assert not executor_problems({"deterministic": False}, [{"name": "adam"}, {"name": "cma"}])


def test_runs_that_share_a_study_have_one_worker_each() -> None:
    driver = {"name": "optuna", "storage": "sqlite:///study.db"}
    with pytest.raises(ValidationError, match="Start one run for each worker"):
        SearchConfig.model_validate(SEARCH | {"driver": driver, "executor": {"workers": 4}})


def test_a_cache_on_other_machines_is_for_what_is_fetched() -> None:
    with pytest.raises(ValidationError, match="node_cache is '/scratch', where files are kept that are fetched"):
        ExecutorConfig(workers=2, node_cache="/scratch")
    with pytest.raises(ValidationError, match="expected an absolute path"):
        ExecutorConfig(workers=2, node_cache="scratch", files="fetch")
    assert ExecutorConfig(workers=2, node_cache="/scratch", files="fetch").node_cache == "/scratch"


@pytest.mark.parametrize("place", ["terms", "select", "stage"])
def test_task_files_cannot_be_fetched(place: str) -> None:
    term = {"name": "lm-eval", "tasks": ["gsm8k", "mine.yaml"], "allow_public_tests": True}
    usual: dict[str, Any] = {"terms": [{"name": "accuracy"}]}
    search: dict[str, Any] = SEARCH | {"driver": "cma", "objective": {"terms": [term]} if place == "terms" else usual}
    if place == "select":
        search["objective"] = usual | {"select": [term]}
    if place == "stage":
        del search["driver"]
        search["schedule"] = [{"driver": "cma", "objective": {"terms": [term]}}]
    SearchConfig.model_validate(search)
    with pytest.raises(
        ValidationError, match=r"executor\.files is fetch, and the term lm-eval .* task file mine\.yaml"
    ):
        SearchConfig.model_validate(search | {"executor": {"workers": 2, "files": "fetch"}})
