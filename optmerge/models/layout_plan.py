"""The layout of a model over several devices: shared out here, or what a search file says.

    layout = plan_layout(family, torch.bfloat16, "balanced", room=[70 << 30, 70 << 30])
    layout["model.layers.0"]                # 0, the number of a device

Only shapes are looked at. Layers stay whole, as does what has none (embeddings, heads), and tensors that are tied are
on one device. What follows one another in the model is on one device or on two that do; the first has the inputs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from optmerge.errors import ConfigError, did_you_mean
from optmerge.models.architecture import model_on_meta
from optmerge.models.roles import layer_modules
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
    import_accelerate()  # the model that is spread will need it
    models = _models(family, dtype)
    if isinstance(wanted, str):
        layout = _inferred(models[0], wanted, room)
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
    pieces = _pieces(model)
    numbers = shared_out([size for _, size in pieces], room, evenly=way != "sequential")
    if not numbers or numbers[0] != 0:
        each = ", ".join(f"{free / 1e9:.1f}" for free in room)
        raise ConfigError(
            f"The model's weights take {sum(size for _, size in pieces) / 1e9:.1f} GB, and in whole layers they do not "
            f"fit on its {len(room)} devices, which may hold {each} GB. Give it more of them "
            "(executor.gpus_per_worker), or set dtype: bfloat16 where it is float32."
        )
    return {name: number for (names, _), number in zip(pieces, numbers, strict=True) for name in names}


def shared_out(sizes: Sequence[int], room: Sequence[int], *, evenly: bool) -> list[int] | None:
    """The device of every piece, one after the other; None where they do not fit.

    Args:
        sizes: Bytes of pieces.
        room: Bytes that each device may hold.
        evenly: The fullest device has as little as can be, then the fullest of those after the first, and so on;
            False: each is filled before the next.

    >>> shared_out([5, 1, 1, 1, 1], [9, 9, 9], evenly=True)
    [0, 1, 1, 2, 2]
    >>> shared_out([5, 1, 1, 1, 1], [9, 9, 9], evenly=False)
    [0, 0, 0, 0, 0]
    """
    numbers: list[int] = []
    for number in range(len(room)):
        rest, left = sizes[len(numbers) :], room[number:]
        filled = _filled(rest, left, _least(rest, left) if evenly else sum(rest))
        if filled is None:
            return None
        numbers += [number] * filled.count(0)
    return numbers


def _least(sizes: Sequence[int], room: Sequence[int]) -> int:
    """The fewest bytes for which the pieces fit where no device holds more; what they all take if there are none."""
    return bisect_left(range(sum(sizes)), True, key=lambda most: _filled(sizes, room, most) is not None)


def _filled(sizes: Sequence[int], room: Sequence[int], most: int) -> list[int] | None:
    """The device of every piece where each takes what it has room for, and no more than ``most``."""
    numbers: list[int] = []
    number = used = 0
    for size in sizes:
        while number < len(room) and used + size > min(room[number], most):
            number, used = number + 1, 0
        if number == len(room):
            return None
        numbers.append(number)
        used += size
    return numbers


def _pieces(model: nn.Module) -> list[tuple[list[str], int]]:
    """What is on one device: prefixes of parameters, and bytes. What is tied to an earlier piece is part of it.

    What only makes values for all layers, such as rotary frequencies, is in none: it is where the inputs are.
    """
    named = list(model.named_parameters(remove_duplicate=False))
    pieces: list[tuple[list[str], int]] = []
    piece_of: dict[int, int] = {}
    for prefix in _prefixes(model, "", _whole(model)):
        own = {id(value): value for name, value in named if name == prefix or name.startswith(f"{prefix}.")}
        if own:
            number = min((piece_of[key] for key in own if key in piece_of), default=len(pieces))
            names, size = pieces[number] if number < len(pieces) else ([], 0)
            new = sum(value.numel() * value.dtype.itemsize for key, value in own.items() if key not in piece_of)
            pieces[number : number + 1] = [([*names, prefix], size + new)]
            piece_of = dict.fromkeys(own, number) | piece_of
    return pieces


def _prefixes(module: nn.Module, path: str, whole: Mapping[str, nn.Module]) -> Iterator[str]:
    """What a model is made of, in its order: layers, modules without any, and parameters between these."""
    inside = f"{path}." if path else ""
    for name, _ in module.named_parameters(recurse=False):
        yield inside + name
    for name, child in module.named_children():
        inner = inside + name
        if inner not in whole and any(each.startswith(f"{inner}.") for each in whole):
            yield from _prefixes(child, inner, whole)
        else:
            yield inner


def _whole(model: nn.Module) -> dict[str, nn.Module]:
    """What must be on one device, by path: layers, and what transformers says of itself, which is nothing of some."""
    layers = {id(layer) for layer in layer_modules(model)}
    classes = set(getattr(model, "_no_split_modules", None) or ())
    modules = model.named_modules()
    return {path: each for path, each in modules if id(each) in layers or type(each).__name__ in classes}


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
    for name, module in _whole(model).items():
        inside = {spread.number_of(f"{name}.{each}") for each, _ in module.named_parameters()}
        if len(inside) > 1:
            raise ConfigError(
                f"device_map takes {name} of {what} apart; a {type(module).__name__} runs on one device. Give all "
                "of it the same one."
            )
