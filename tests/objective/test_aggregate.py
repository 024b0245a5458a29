"""Aggregates of tasks against their definitions."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optmerge.config.load import build_config
from optmerge.config.objectives import AggregateConfig, CVaRConfig, MeanConfig, ObjectiveConfig, WorstConfig
from optmerge.config.schema import SearchConfig
from optmerge.errors import ConfigError
from optmerge.objective import Objective
from optmerge.objective.aggregate import task_weights
from tests.objective.test_objective import MEANS, make

EVERY: list[AggregateConfig] = [MeanConfig(), WorstConfig(), CVaRConfig(share=0.3), CVaRConfig(share=1.0)]


def parts_and_shares(data: st.DataObject) -> tuple[dict[str, float], dict[str, float]]:
    count = data.draw(st.integers(1, 7))
    tasks = [f"t{number}" for number in range(count)]
    parts = data.draw(st.lists(st.floats(-2, 5), min_size=count, max_size=count))
    given = data.draw(st.lists(st.floats(0.1, 4), min_size=count, max_size=count))
    return dict(zip(tasks, parts, strict=True)), {
        task: weight / sum(given) for task, weight in zip(tasks, given, strict=True)
    }


def value_of(config: AggregateConfig, parts: dict[str, float], shares: dict[str, float]) -> float:
    weights = task_weights(config, parts, shares)
    return sum(weights[task] * part for task, part in parts.items())


@given(data=st.data())
def test_cvar_is_the_minimum_of_rockafellar_and_uryasev(data: st.DataObject) -> None:
    parts, shares = parts_and_shares(data)
    share = data.draw(st.floats(0.01, 1))
    x, p = np.array(list(parts.values())), np.array(list(shares.values()))
    tail = math.ceil(round(share * len(x), 9)) / len(x)
    # The function is convex and piecewise linear in eta, with its corners at the parts: one of them is the minimum.
    expected = min(eta + (p * np.maximum(x - eta, 0.0)).sum() / tail for eta in x)
    assert value_of(CVaRConfig(share=share), parts, shares) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("share", "count"), [(0.1, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.51, 3), (1.0, 4)])
def test_with_equal_weights_cvar_is_the_mean_of_the_worst_tasks(share: float, count: int) -> None:
    parts = {"a": 0.4, "b": 3.0, "c": -1.0, "d": 1.5}
    worst = sorted(parts.values(), reverse=True)[:count]
    assert value_of(CVaRConfig(share=share), parts, dict.fromkeys(parts, 0.25)) == pytest.approx(sum(worst) / count)


def test_a_share_of_whole_tasks_is_not_rounded_up_for_its_last_bit() -> None:
    parts = {f"t{number}": float(number) for number in range(30)}  # 0.1 * 30 is 3.0000000000000004
    weights = task_weights(CVaRConfig(share=0.1), parts, dict.fromkeys(parts, 1 / 30))
    assert sum(weight > 0 for weight in weights.values()) == 3


@pytest.mark.parametrize("config", EVERY)
@given(data=st.data())
def test_weights_sum_to_one_and_are_the_slope_of_the_value(config: AggregateConfig, data: st.DataObject) -> None:
    parts, shares = parts_and_shares(data)
    weights = task_weights(config, parts, shares)
    assert set(weights) == set(parts)
    assert min(weights.values()) >= 0
    assert sum(weights.values()) == pytest.approx(1.0)
    value = value_of(config, parts, shares)
    for task in parts:  # a subgradient of a convex function lies below it
        moved = parts | {task: parts[task] + 0.37}
        assert value_of(config, moved, shares) >= value + 0.37 * weights[task] - 1e-9


def test_the_worst_is_exact_and_a_task_without_weight_has_no_say() -> None:
    parts = {"a": 0.1, "b": 0.30000000000000004, "c": 9.0}
    shares = {"a": 0.5, "b": 0.5, "c": 0.0}
    assert value_of(WorstConfig(), parts, shares) == 0.30000000000000004
    assert task_weights(CVaRConfig(share=1.0), parts, shares) == {"a": 0.5, "b": 0.5, "c": 0.0}


@pytest.mark.parametrize("aggregate", ["worst", {"name": "cvar", "share": 0.4}])
def test_a_task_that_is_not_a_number_makes_the_value_none(aggregate: object) -> None:
    objective = make({"name": "entropy"}, aggregate=aggregate)
    assert math.isnan(objective.combine("fit", {**MEANS, "a": {"entropy": math.nan}})[0])
    assert math.isinf(objective.combine("fit", {**MEANS, "a": {"entropy": math.inf}})[0])


def test_the_objective_uses_it() -> None:
    terms = {"name": "expert-kl", "normalise": "none"}
    assert make(terms, aggregate="worst").combine("fit", MEANS) == (0.8, {"a": 0.2, "b": 0.8})
    assert make(terms, aggregate="worst").weigh("fit", MEANS) == {"a": 0.0, "b": 1.0}
    heavy = make(terms, aggregate={"name": "cvar", "share": 0.5}, task_weights={"a": 3})
    assert heavy.combine("fit", MEANS)[0] == pytest.approx((0.25 * 0.8 + 0.25 * 0.2) / 0.5)
    assert [make(terms, aggregate=a).needs_parts for a in ("mean", "worst", "cvar")] == [False, True, True]
    assert Objective(ObjectiveConfig.model_validate({"terms": [terms]}), ["a"], {"a": 2}).needs_parts is False


def test_how_a_search_file_names_it(tmp_path: Path) -> None:
    data = {
        "base": "b",
        "experts": {"e": "e"},
        "tasks": {"t": {"expert": "e", "data": "t.jsonl"}},
        "objective": {"terms": [{"name": "entropy"}], "aggregate": "cvar"},
    }

    def aggregate(*overrides: str) -> AggregateConfig:
        config: SearchConfig = build_config(data, root=tmp_path, overrides=overrides)
        return config.objective.aggregate

    assert aggregate() == CVaRConfig(share=0.5)
    assert aggregate("objective.aggregate.share=0.2") == CVaRConfig(share=0.2)
    assert aggregate("objective.aggregate=worst") == WorstConfig()
    with pytest.raises(ConfigError, match=r"objective\.aggregate.*wurst.*expected one of mean, worst, cvar.*'worst'"):
        aggregate("objective.aggregate=wurst")
    with pytest.raises(ConfigError, match=r"objective\.aggregate\.share is 1\.5; expected a number of at most 1"):
        aggregate("objective.aggregate.share=1.5")
