"""Which devices a search takes for its model and its workers' models, and what it says where there are too few."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from optmerge.cli import main
from optmerge.config.load import build_config
from optmerge.config.schema import SearchConfig
from optmerge.errors import ConfigError
from optmerge.models.spread import Spread
from optmerge.runner import memory, spreading
from optmerge.runner.memory_division import Division
from optmerge.runner.plan import make_plan
from optmerge.runner.plan_time import speedup
from optmerge.runner.spreading import devices_of, open_spread

Settings = Callable[..., dict[str, Any]]
CPU, META = torch.device("cpu"), torch.device("meta")


def cuda(*numbers: int) -> list[torch.device]:
    return [torch.device("cuda", number) for number in numbers]


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with four CUDA devices, as far as torch is asked how many there are."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


def config_of(**changes: Any) -> SearchConfig:
    search = {
        "base": "base",
        "experts": {"a": "a"},
        "tasks": {"a": {"expert": "a", "data": "a.jsonl"}},
        "objective": {"terms": [{"name": "expert-kl"}]},
    }
    return SearchConfig.model_validate(search | changes)


@pytest.mark.usefixtures("four")
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, cuda(0)),
        ({"device": "cuda:2"}, cuda(2)),
        ({"device": "cpu"}, [CPU]),
        ({"device_map": "auto"}, cuda(0, 1, 2, 3)),
        ({"device_map": "sequential", "executor": {"gpus_per_worker": 3}}, cuda(0, 1, 2)),
        ({"executor": {"workers": 2, "gpus_per_worker": 2}}, cuda(0, 1)),
        ({"device_map": {"a": 0, "": 1}}, cuda(0, 1)),
        ({"device_map": {"": "cpu"}}, [CPU]),
        ({"executor": {"name": "ray", "gpus_per_worker": 0.5}}, cuda(0)),
    ],
)
def test_devices(changes: dict[str, Any], expected: list[torch.device]) -> None:
    assert spreading._devices(config_of(**changes)) == expected


@pytest.mark.usefixtures("four")
@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"executor": {"gpus_per_worker": 8}}, "executor.gpus_per_worker is 8, and this machine has 4 CUDA devices"),
        ({"device_map": {"a": 0, "": 4}}, "device_map names device 4, and this machine has 4 CUDA devices"),
    ],
)
def test_too_few_devices(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        spreading._devices(config_of(**changes))


def test_without_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert spreading._devices(config_of(executor={"workers": 2, "gpus_per_worker": 2})) == [CPU]
    with pytest.raises(ConfigError, match="device_map is 'auto', and this machine has no CUDA device"):
        spreading._devices(config_of(device_map="auto"))


def test_devices_of_workers() -> None:
    one, two = Spread.on(cuda(0)[0]), Spread((*cuda(0, 1),), {"": 1})
    assert devices_of(one, "auto", 3, visible=2) == [("cuda:0",), ("cuda:1",), ("cuda:0",)]
    assert devices_of(Spread.on(cuda(1)[0]), "cuda:1", 2, visible=2) == [("cuda:1",)] * 2
    assert devices_of(two, "auto", 4, visible=8)[3] == ("cuda:6", "cuda:7")
    assert devices_of(two, "auto", 3, visible=8)[0] == ("cuda:2", "cuda:3"), "behind the search's own"
    assert devices_of(one, "auto", 1, visible=8) == [("cuda:0",)]
    assert devices_of(two, "auto", 2, visible=3) == [("cuda:0", "cuda:1")] * 2, "half a group is no use"
    assert devices_of(Spread((CPU, CPU), {"": 1}), "cpu", 2) == [("cpu", "cpu")] * 2


@pytest.mark.usefixtures("four")
@pytest.mark.parametrize(
    ("executor", "faster"),
    [
        ({"workers": 32}, 4),
        ({"name": "ray", "workers": 32}, 32),
        ({"name": "ray", "workers": 32, "gpus_per_worker": 0.25}, 8),
        ({"name": "ray", "workers": 1, "gpus_per_worker": 0.25}, 1),
    ],
)
def test_workers_of_a_cluster_have_other_devices_than_this_machine(executor: dict[str, Any], faster: int) -> None:
    assert speedup(config_of(executor=executor), Spread.on(cuda(0)[0])) == faster


def test_a_layout_of_more_devices_is_made_anew(settings: Settings, tmp_path: Path) -> None:
    from optmerge.models.family import open_family

    config = build_config(settings(), root=tmp_path)
    family = open_family(config.base, config.experts, relative_to=tmp_path, check_values=False)
    begun = {"": 0, "classifier": 1}
    kept = open_spread(config, family, torch.float32, devices=[CPU, CPU], layout=begun)
    assert kept.layout == begun
    other = open_spread(config, family, torch.float32, devices=[CPU, CPU], layout={"": 0, "classifier": 2})
    assert set(other.layout.values()) == {0, 1}


def test_every_device_must_have_room_for_its_share() -> None:
    division = Division(Spread((META, META), {"": 1, "a": 0}), {"a": 300, "b": 100}, [1000, 200], judged=50)
    parts = {"model": 400, "gradients and activations": 450, "buffers": 20, "teacher outputs": 60}
    first, second = division.of(parts)
    assert (first["model"], second["model"]) == (300, 100)
    assert (first["gradients and activations"], second["gradients and activations"]) == (350, 100)
    assert sum(division.whole(parts).values()) == sum(first.values()) + sum(second.values())
    assert division.rooms(parts) == [1000 - 730, 200 - 220]
    assert not division.fits(parts)
    assert division.fits(parts | {"gradients and activations": 130})
    assert [(each.weights, each.needed, each.budget) for each in division.devices(parts, [7, 0])] == [
        (300, 737, 1000),
        (100, 220, 200),
    ]


def test_what_is_kept_is_kept_on_every_device(settings: Settings, tmp_path: Path) -> None:
    from optmerge.merging.recipe import Direction
    from optmerge.models.family import open_family

    config = build_config(settings(), root=tmp_path)
    family = open_family(config.base, config.experts, relative_to=tmp_path, check_values=False)
    directions = [Direction(name, "expert") for name in family.experts]
    layout = {"": 0, next(iter(family.parameters)): 1}
    sizes = [0, 0]
    for name, parameter in family.parameters.items():
        sizes[Spread((META, META), layout).number_of(name)] += parameter.numel * parameter.dtype.itemsize
    spread = Spread((META, META), layout)
    rooms = [2 * sizes[0], 10 * sizes[1]]
    assert memory._place(family, directions, spread, rooms) == (True, (directions[0].name,), [2 * s for s in sizes])
    assert memory._place(family, directions, spread, [10 * sizes[0], 0]) == (False, (), [0, 0])


def test_the_plan_says_what_is_where(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(spreading, "_devices", lambda config: [CPU, CPU])
    whole = make_plan(build_config(settings(), root=tmp_path), root=tmp_path)
    assert [each.device for each in whole.devices] == ["cpu", "cpu"]
    assert sum(each.weights for each in whole.devices) == whole.memory["model"]
    assert all(0 < each.weights < each.needed < each.budget for each in whole.devices)
    assert sum(each.needed for each in whole.devices) == whole.memory["peak"]

    file = tmp_path / "search.yaml"
    file.write_text(json.dumps(settings()))
    monkeypatch.setattr("sys.argv", ["optmerge", "plan", str(file)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [words[0] for words in said if words and words[0] == "cpu"] == ["cpu", "cpu"]
