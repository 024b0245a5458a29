"""Which device holds which part of a model, and what carries values from one to the next.

    spread = Spread((gpu0, gpu1), {"model.embed_tokens": 0, "model.layers.0": 0, "model.layers.1": 1, "lm_head": 1})
    spread.device_of("model.layers.1.mlp.up_proj.weight")      # gpu1
    spread.carry([model])

Inputs go to the first device, and outputs come back to it, so that whoever runs the model need not know of the others.
A model on one device is a spread over one, which carries nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import nn

from optmerge.errors import MissingExtraError

T = TypeVar("T")
_Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], tuple[Any, Any]]


@dataclass(frozen=True, eq=False)
class Spread:
    """A model's devices.

    Attributes:
        devices: The model's, the one of its inputs first. Several numbers may stand for one device.
        layout: Prefix of modules -> the number of the device that holds them; the longest prefix counts. Of no
            meaning where there is one device.

    >>> cpu, meta = torch.device("cpu"), torch.device("meta")
    >>> Spread((cpu, meta), {"layers": 1, "layers.0": 0}).device_of("layers.10.weight")
    device(type='meta')
    """

    devices: tuple[torch.device, ...]
    layout: Mapping[str, int]

    @classmethod
    def on(cls, device: torch.device) -> Spread:
        """A whole model on one device."""
        return cls((device,), {})

    @classmethod
    def of(cls, where: torch.device | Spread) -> Spread:
        """A spread as it is; a device as the only one."""
        return where if isinstance(where, Spread) else cls.on(where)

    @property
    def main(self) -> torch.device:
        """Where inputs and outputs are."""
        return self.devices[0]

    @property
    def several(self) -> bool:
        """Whether the model is on more than one device."""
        return len(self.devices) > 1

    def knows(self, name: str) -> bool:
        """Whether the layout has a prefix of a parameter's or a buffer's name."""
        return not self.several or self._prefix(name) is not None

    def number_of(self, name: str) -> int:
        """The number of the device of a parameter or buffer; a name without a prefix in the layout is the first's."""
        prefix = self._prefix(name) if self.several else None
        return 0 if prefix is None else self.layout[prefix]

    def device_of(self, name: str) -> torch.device:
        """Where a parameter or buffer is."""
        return self.devices[self.number_of(name)]

    def parts(self, named: Mapping[str, T]) -> list[dict[str, T]]:
        """What is on each device that holds any of the named parameters, in the devices' order."""
        held: list[dict[str, T]] = [{} for _ in self.devices]
        for name, value in named.items():
            held[self.number_of(name)][name] = value
        return [part for part in held if part]

    def carry(self, models: Iterable[nn.Module]) -> None:
        """Let every module that is whole on one device get its arguments there, and models give outputs on the first.

        Args:
            models: Already where they are to be; they may share modules.

        Raises:
            MissingExtraError: accelerate is not installed.
        """
        if not self.several:
            return
        send = import_accelerate().send_to_device
        seen: set[int] = set()
        for model in models:
            numbers = self._numbers(model)
            skip = sorted(getattr(model, "_skip_keys_device_placement", None) or ())  # caches, which are per layer
            for name, module in model.named_modules():
                if module is model:
                    module.register_forward_pre_hook(_arriving(send, self.main, skip), with_kwargs=True)
                    module.register_forward_hook(_returning(send, self.main, skip))
                elif len(numbers.get(name, ())) == 1 and id(module) not in seen:
                    (number,) = numbers[name]
                    arriving = _arriving(send, self.devices[number], skip)
                    module.register_forward_pre_hook(arriving, with_kwargs=True)
                    seen.add(id(module))

    def _prefix(self, name: str) -> str | None:
        while name not in self.layout:
            if not name:
                return None
            name = name.rpartition(".")[0]
        return name

    def _numbers(self, model: nn.Module) -> dict[str, set[int]]:
        """Module -> the numbers of the devices that its tensors are on, those of its submodules among them."""
        found: dict[str, set[int]] = {}
        tensors = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
        for name, _ in tensors:
            number, module = self.number_of(name), name
            while module:
                module = module.rpartition(".")[0]
                found.setdefault(module, set()).add(number)
        return found


def _arriving(send: Callable[..., Any], device: torch.device, skip: Sequence[str]) -> _Hook:
    """A forward pre-hook that brings a module's arguments to its device; the host does not wait."""

    def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        return (
            send(arguments, device, non_blocking=True),
            send(named, device, non_blocking=True, skip_keys=list(skip)),
        )

    return hook


def _returning(
    send: Callable[..., Any], device: torch.device, skip: Sequence[str]
) -> Callable[[nn.Module, Any, Any], Any]:
    """A forward hook that brings outputs to a device."""

    def hook(module: nn.Module, arguments: Any, output: Any) -> Any:
        return send(output, device, non_blocking=True, skip_keys=list(skip))

    return hook


def import_accelerate() -> Any:
    """``accelerate.utils``, which knows how to send nested values to a device.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return import_module("accelerate.utils")  # with a name that type checkers need not know
    except ModuleNotFoundError:
        raise MissingExtraError(
            "A model that is spread over several devices (device_map, or executor.gpus_per_worker above 1) needs "
            "accelerate, which is not installed. Install it with: pip install 'optmerge[spread]'"
        ) from None
