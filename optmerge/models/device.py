"""The one place that decides on devices and dtypes, and copies between host and device.

Nothing else asks torch what the machine has.

device = pick_device("auto")
dtype = pick_dtype("auto", family)
batch = {name: to_device(tensor, device) for name, tensor in inputs.items()}
if out_of_memory(error): release_memory(device)
"""

from __future__ import annotations

import gc
import re
from collections import Counter
from typing import TYPE_CHECKING

import torch

from optmerge.errors import ConfigError

if TYPE_CHECKING:
    from optmerge.models.family import Family

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(text: str) -> torch.device:
    """The device that a search file names: auto, cpu, cuda, cuda:1, mps.

    ``auto`` is the first CUDA device, else MPS, else the CPU.

    Raises:
        ConfigError: There is no such device, or this machine or this build of torch does not have it.
    """
    if text == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if text == "cpu":
        return torch.device("cpu")
    if text == "mps":
        if not torch.backends.mps.is_available():
            raise ConfigError("device is 'mps', which this machine or this build of torch does not have. Use cpu.")
        return torch.device("mps")
    named = re.fullmatch(r"cuda(?::(\d+))?", text)
    if named is None:
        raise ConfigError(f"device is {text!r}; expected auto, cpu, cuda, cuda:N or mps.")
    index = int(named[1] or 0)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= count:
        have = f"{count} CUDA device{'' if count == 1 else 's'}" if count else "no CUDA device that torch can use"
        raise ConfigError(f"device is {text!r}, and this machine has {have}. Use device: auto or cpu.")
    return torch.device("cuda", index)


def pick_dtype(text: str, family: Family) -> torch.dtype:
    """The resident model's dtype: the one that is named, or with ``auto`` the one that most of the base is stored in.

    Raises:
        ConfigError: The name is unknown.
    """
    if text == "auto":
        held: Counter[torch.dtype] = Counter()
        for parameter in family.parameters.values():
            held[parameter.dtype] += parameter.numel
        return held.most_common(1)[0][0]
    if text not in _DTYPES:
        raise ConfigError(f"dtype is {text!r}; expected auto, {', '.join(_DTYPES)}.")
    return _DTYPES[text]


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device, without waiting for the copy; nothing is copied when it is there already."""
    return tensor.to(device, non_blocking=True)


def out_of_memory(error: Exception) -> bool:
    """Whether an exception says that a device, or this machine, has no memory left.

    The allocators of the CPU and of MPS, and CUDA outside PyTorch's own, raise a plain RuntimeError; its text decides.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    signs = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def release_memory(device: torch.device) -> None:
    """Collect what only cycles keep alive, and give the device's cached blocks back."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
