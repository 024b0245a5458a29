"""Devices and dtypes."""

from __future__ import annotations

import pytest
import torch

from optmerge.errors import ConfigError
from optmerge.models.device import pick_device, pick_dtype, to_device
from optmerge.models.family import open_family
from tests.tiny import save_family


def test_cpu_and_auto() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize("text", ["gpu", "cpu:x", "cuda:999", "meta", "xla"])
def test_devices_that_are_not_there(text: str) -> None:
    with pytest.raises(ConfigError, match=f"device is '{text}'"):
        pick_device(text)


def test_dtypes(tmp_path_factory: pytest.TempPathFactory) -> None:
    made = save_family("llama", tmp_path_factory.mktemp("bf16"), dtype=torch.bfloat16)
    experts = {name: str(folder) for name, folder in made.experts.items()}
    family = open_family(str(made.base), experts, relative_to=made.base)
    assert pick_dtype("auto", family) == torch.bfloat16
    assert pick_dtype("float32", family) == torch.float32
    with pytest.raises(ConfigError, match="float99"):
        pick_dtype("float99", family)


def test_copies_only_when_needed() -> None:
    tensor = torch.ones(2)
    assert to_device(tensor, torch.device("cpu")) is tensor
