"""What a search file may say of a model on several devices, and what it contradicts."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from optmerge.config.schema import SearchConfig

SEARCH = {
    "base": "base",
    "experts": {"a": "a"},
    "tasks": {"a": {"expert": "a", "data": "a.jsonl"}},
    "objective": {"terms": [{"name": "expert-kl"}]},
}


def read(**changes: Any) -> SearchConfig:
    return SearchConfig.model_validate(SEARCH | changes)


@pytest.mark.parametrize("way", [None, "auto", "balanced", "sequential"])
def test_ways(way: str | None) -> None:
    assert read(device_map=way).device_map == way


def test_devices_are_numbers_whatever_they_are_called() -> None:
    found = read(device_map={"model.embed_tokens": 0, "model.layers": "cuda:1", "": "2"}).device_map
    assert found == {"model.embed_tokens": 0, "model.layers": 1, "": 2}
    assert read(device_map={"": "cpu"}, device="cpu").device_map == {"": "cpu"}


def test_what_was_read_reads_the_same() -> None:
    config = read(device_map={"": 1, "a": 0}, executor={"gpus_per_worker": 2, "workers": 3})
    assert SearchConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"device_map": "evenly"}, "device_map is 'evenly'; expected null, auto, balanced, sequential, or a mapping"),
        ({"device_map": {}}, "expected null, auto"),
        ({"device_map": {"a": "disk"}}, "device_map puts 'a' on 'disk'; expected the number of an accelerator"),
        ({"device_map": {"a": -1}}, "device_map puts 'a' on -1"),
        ({"device_map": {"a": "cpu", "b": 0}}, "device_map puts 'a' on the CPU and other modules on accelerators"),
        ({"device_map": {"": "cpu"}, "device": "cuda"}, "puts the model on the CPU, and device is 'cuda'"),
        (
            {"device_map": {"": "cpu"}, "executor": {"gpus_per_worker": 2}},
            "puts the model on the CPU, and executor.gpus_per_worker is 2",
        ),
        ({"device_map": "auto", "device": "cuda:1"}, "device_map is 'auto', and device is 'cuda:1'"),
        ({"device_map": "auto", "device": "cpu"}, "device_map is 'auto', and device is 'cpu'"),
        ({"device": "mps", "executor": {"gpus_per_worker": 2}}, "gpus_per_worker is 2, and device is 'mps'"),
        ({"device_map": "auto", "executor": {"workers": 2}}, "executor.gpus_per_worker is 1: a worker's model has one"),
        ({"device_map": "auto", "executor": "ray"}, "Set executor.gpus_per_worker to the number"),
        ({"device_map": "auto", "executor": {"timeout": 9}}, "Set executor.gpus_per_worker to the number"),
        ({"executor": {"workers": 2, "gpus_per_worker": 1.5}}, "gpus_per_worker is 1.5; above 1 .* Set it to 1 or 2"),
        (
            {"device_map": {"a": 0, "b": 2}, "executor": {"gpus_per_worker": 2}},
            "device_map puts 'b' on 2, and with executor.gpus_per_worker: 2 a worker's devices have the numbers 0 to 1",
        ),
    ],
)
def test_contradictions_are_told(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        read(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"device_map": "auto"},
        {"device_map": "auto", "executor": {"gpus_per_worker": 2}},
        {"device_map": {"a": 0, "": 3}},
        {"device_map": "sequential", "executor": {"name": "ray", "workers": 4, "gpus_per_worker": 2}},
        {"executor": {"workers": 4, "gpus_per_worker": 2.0, "timeout": 60}, "device": "cuda"},
        {"executor": {"name": "ray", "gpus_per_worker": 0.5}},
    ],
)
def test_what_agrees(changes: dict[str, Any]) -> None:
    read(**changes)
