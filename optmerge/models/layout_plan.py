"""The layout of a model over several devices: found out by accelerate, or what a search file says.

    layout = plan_layout(family, torch.bfloat16, "balanced", room=[70 << 30, 70 << 30])
    layout["model.layers.0"]                # 0, the number of a device

Only shapes are looked at. Layers stay whole, and tensors that are tied are on one device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from optmerge.errors import ConfigError, did_you_mean
from optmerge.models.architecture import model_on_meta
from optmerge.models.spread import Spread, import_accelerate
from optmerge.models.ties import untie

if TYPE_CHECKING:
    from optmerge.models.family import Family

Way = Literal["auto", "balanced", "sequential"]


def plan_layout(
    family: Family, dtype: torch.dtype, wanted: Way | Mapping[str, int], *, room: Sequence[int]
) -> dict[str, int]:
    """Prefix of modules -> the number of the device that is to hold them.

    Args:
        family: Base and experts.
        dtype: Of the resident model.
        wanted: "balanced" or "auto": alike shares of the weights; "sequential": the first devices are filled first; or
            the layout itself.
        room: Bytes of weights that each device may hold.

    Raises:
        ConfigError: The model does not fit, or the layout cannot be.
        MissingExtraError: accelerate is not installed.
    """
    models = _models(family, dtype)
    if isinstance(wanted, str):
        layout = _inferred(models[0], wanted, room)
        for names in _tied(models[0]):
            first = Spread(_BLANK * len(room), layout).number_of(names[0])
            layout |= {name: first for name in names}
    else:
        layout = dict(wanted)
        _check_names(models[0], layout)
    for model in models:
        _check(model, Spread(_BLANK * len(room), layout), first=next(iter(family.parameters)))
    return layout


_BLANK = (torch.device("meta"),)


def _models(family: Family, dtype: torch.dtype) -> list[nn.Module]:
    """The models that the layout is of, on the meta device: one, or with heads of their own one for every expert."""
    if family.heads == "own":
        return [model_on_meta(family.configs[expert], family.kind, dtype=dtype) for expert in family.experts]
    model = model_on_meta(family.configs["base"], family.kind, dtype=dtype)
    untie(model, family.parameters)
    return [model]


def _inferred(model: nn.Module, way: Way, room: Sequence[int]) -> dict[str, int]:
    accelerate = import_accelerate("accelerate.utils")
    whole: Any = sorted(_unsplit(model))
    most: Any = dict(enumerate(room))
    if way != "sequential":
        most = accelerate.get_balanced_memory(model, most, whole)
    found: dict[str, Any] = dict(
        accelerate.infer_auto_device_map(model, max_memory=most, no_split_module_classes=whole)
    )
    if any(not isinstance(number, int) for number in found.values()):
        size = sum(parameter.numel() * parameter.dtype.itemsize for parameter in model.parameters())
        each = ", ".join(f"{free / 1e9:.1f}" for free in room)
        raise ConfigError(
            f"The model's weights take {size / 1e9:.1f} GB, and in whole layers they do not fit on its {len(room)} "
            f"devices, which may hold {each} GB. Give it more of them (executor.gpus_per_worker), or set dtype: "
            "bfloat16 where it is float32."
        )
    # What only makes values for all layers, such as rotary frequencies, is where the inputs are.
    own = {name for name in found if isinstance(_at(model, name), nn.Module)}
    return found | {name: 0 for name in own if next(model.get_submodule(name).parameters(), None) is None}


def _at(model: nn.Module, name: str) -> object:
    """The module or tensor of that name."""
    owner, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(owner), attribute, None)


def _unsplit(model: nn.Module) -> set[str]:
    """The classes of modules that must be whole on one device, by name."""
    return set(getattr(model, "_no_split_modules", None) or ())


def _tied(model: nn.Module) -> list[list[str]]:
    """The names of every tensor that has several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [found for found in names.values() if len(found) > 1]


def _check_names(model: nn.Module, layout: Mapping[str, int]) -> None:
    """Refuse prefixes that name nothing."""
    known = {name for name, _ in chain(model.named_modules(), model.named_parameters(), model.named_buffers())}
    for prefix in layout:
        if prefix not in known:
            raise ConfigError(
                f"device_map names {prefix!r}, and {type(model).__name__} has no such module."
                f"{did_you_mean(prefix, sorted(known))}"
            )


def _check(model: nn.Module, spread: Spread, *, first: str) -> None:
    """Refuse a layout that leaves something out or takes apart what belongs together."""
    what = type(model).__name__
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    absent = [name for name in names if not spread.knows(name)]
    if absent:
        raise ConfigError(
            f"device_map does not say where {absent[0]} of {what} is to be, and {len(absent) - 1} more. Name its "
            "module, or '' for everything that has no place of its own."
        )
    if first in names and spread.number_of(first) != 0:
        raise ConfigError(
            f"device_map puts {first}, which sees a model's inputs, on device {spread.number_of(first)}; it must be on "
            "the first device, 0, where inputs and outputs are. Number the devices in the order of the layers."
        )
    for tied in _tied(model):
        numbers = [spread.number_of(name) for name in tied]
        if len(set(numbers)) > 1:
            where = " and ".join(f"{name} on {number}" for name, number in zip(tied, numbers, strict=True))
            raise ConfigError(
                f"device_map puts {where}, and in {what} they are one tensor. Give them the same device, or use "
                "device_map: balanced."
            )
    unsplit = _unsplit(model)
    for name, module in model.named_modules():
        if type(module).__name__ in unsplit:
            inside = {spread.number_of(f"{name}.{each}") for each, _ in module.named_parameters()}
            if len(inside) > 1:
                raise ConfigError(
                    f"device_map takes {name} of {what} apart; a {type(module).__name__} runs on one device. Give all "
                    "of it the same one."
                )
