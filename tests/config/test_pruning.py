from __future__ import annotations

from typing import Any

from optmerge.config.pruning import with_experts


def a_file() -> dict[str, Any]:
    return {
        "base": "base",
        "experts": {"a": "one", "b": "two", "c": "three"},
        "tasks": {"x": {"expert": "a", "data": "x.jsonl"}, "y": {"expert": "b", "data": "y.jsonl"}},
        "tokenizer": "b",
        "space": {
            "preset": "layer-wise",
            "rules": [{"direction": "b", "freeze": 0.0}, {"direction": "a", "freeze": 0.1}, {"match": "norm"}],
        },
        "objective": {"preset": "expert-kl", "task_weights": {"x": 2.0, "y": 1.0}},
        "driver": "adam",
    }


def test_what_speaks_of_the_others_goes() -> None:
    assert with_experts(a_file(), ["a", "c"]) == {
        "base": "base",
        "experts": {"a": "one", "c": "three"},
        "tasks": {"x": {"expert": "a", "data": "x.jsonl"}},
        "space": {"preset": "layer-wise", "rules": [{"direction": "a", "freeze": 0.1}, {"match": "norm"}]},
        "objective": {"preset": "expert-kl", "task_weights": {"x": 2.0}},
        "driver": "adam",
    }


def test_globs_weights_and_stages_speak_of_experts_too() -> None:
    data = a_file() | {
        "space": {"rules": [{"direction": "[bx]*", "freeze": 0.0}, {"direction": "*"}, {"direction": "[bl]*"}]},
        "directions": ["experts", {"name": "linear", "weights": {"a": 1.0, "b": 2.0}}],
        "baselines": {"methods": ["average", {"name": "ties", "weights": {"b": 1.0}}]},
        "schedule": [{"driver": "adam", "objective": {"terms": [], "task_weights": {"x": 2.0, "y": 1.0}}}, "cma"],
    }
    made = with_experts(data, ["a", "c"])
    assert made["space"] == {"rules": [{"direction": "*"}, {"direction": "[bl]*"}]}
    assert made["directions"] == ["experts", {"name": "linear", "weights": {"a": 1.0}}]
    assert made["baselines"] == {"methods": ["average", {"name": "ties", "weights": {}}]}
    assert made["schedule"][0]["objective"] == {"terms": [], "task_weights": {"x": 2.0}}
    assert made["schedule"][1] == "cma"


def test_all_of_them_change_nothing_and_the_file_is_left_alone() -> None:
    data = a_file()
    assert with_experts(data, ["a", "b", "c"]) == a_file()
    with_experts(data, ["a"])
    assert data == a_file()


def test_names_of_presets_stay() -> None:
    data = a_file() | {"space": "task-wise", "objective": "expert-kl"}
    assert with_experts(data, ["a"])["space"] == "task-wise"
