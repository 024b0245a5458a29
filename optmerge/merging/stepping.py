"""A model's layers, one further at every pass over the data (the schedule layer by layer).

What a layer is given depends on the layers before it, so where those are merged one after the other, its inputs are
known only when they are. Each pass runs the model's own forward, so that any architecture will do, but cuts it short:
layers that lie behind give what they gave before, the last merged layer is run and its output kept, the layer of the
pass is run, and the rest is not. L passes thus cost about as much as two forward passes.

    course = follow(model, layers, parameters, lambda: forward(batch))      # in which order the layers are run
    walk = Walk([layers[index] for index in course.order], forward, device=device, ends=course.ends)
    with walk.at(position) as step:                             # 0, 1, 2, ..., and len(layers) for what comes after
        for batch in batches:                                   # the same ones, in the same order
            step(batch)                                         # hooks in the layer see what it is given
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from optmerge.errors import ModelError
from optmerge.merging.statistics import Inputs
from optmerge.models.device import to_device


@dataclass(frozen=True)
class Course:
    """How a forward pass goes through a model's layers.

    Attributes:
        order: Indices of the layers that are run, in the order of their calls.
        ends: Positions in ``order`` of the last layers of a stack (an encoder's, a vision tower's): what comes in
            another stack may read them, however far it is.
        after: The parameters that are first used after the last layer: final norm, pooler, head.
    """

    order: tuple[int, ...]
    ends: frozenset[int]
    after: frozenset[str]


def follow(
    model: nn.Module,
    layers: Sequence[nn.Module],
    parameters: Mapping[str, nn.Parameter],
    forward: Callable[[], object],
) -> Course:
    """Run a model once and see in which order its layers are called.

    Args:
        model: In evaluation mode.
        layers: Its layers, as `optmerge.models.roles.layer_modules` numbers them.
        parameters: Those that are asked about, by name.
        forward: Runs the model.

    Raises:
        ModelError: No layer is run, or one is run more than once, so that it is not behind when the next one comes.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    inside = {id(module) for layer in layers for module in layer.modules()}
    index = {id(layer): number for number, layer in enumerate(layers)}
    order: list[int] = []
    first: dict[int, int] = {}  # module outside the layers -> how many layers had been called before it

    def called(module: nn.Module, arguments: object) -> None:
        if id(module) in index:
            order.append(index[id(module)])
        else:
            first.setdefault(id(module), len(order))

    watched = [module for module in model.modules() if id(module) in index or id(module) not in inside]
    hooks = [module.register_forward_pre_hook(called) for module in watched]
    try:
        with torch.no_grad():
            forward()
    finally:
        for hook in hooks:
            hook.remove()
    if not order or len(set(order)) < len(order):
        trouble = "one of its layers is run more than once" if order else "none of its layers is run"
        raise ModelError(
            f"{type(model).__name__} cannot be merged layer by layer: {trouble}. Use regmean, whose layers are "
            "independent of each other, in the place of regmean++."
        )
    stacks = [paths[id(layers[number])].rpartition(".")[0] for number in order]
    ends = frozenset(at for at in range(len(order) - 1) if stacks[at] != stacks[at + 1])
    uses: dict[int, int] = {}  # parameter outside the layers -> how many layers had been called before it was used
    for module in watched:
        for parameter in module.parameters(recurse=False):
            uses[id(parameter)] = min(first.get(id(module), 0), uses.get(id(parameter), len(order)))
    after = frozenset(name for name, parameter in parameters.items() if uses.get(id(parameter), 0) == len(order))
    return Course(tuple(order), ends, after)


class Walk:
    """A model's way through its layers over fixed batches, one position after the other from 0 on.

    A position may be repeated: `rewind` says that the batches begin again.

    Args:
        layers: In the order in which they are run.
        forward: Runs the model on one batch.
        device: Where the model is. What layers gave is kept on the CPU.
        ends: See `Course`.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        forward: Callable[[Inputs], object],
        *,
        device: torch.device,
        ends: frozenset[int] = frozenset(),
    ) -> None:
        self._layers = tuple(layers)
        self._forward = forward
        self._device = device
        self._ends = ends
        self._given: list[dict[int, Any]] = []  # of each batch: position -> what that layer gave
        self._batch = 0
        self._lost = torch.zeros((), dtype=torch.bool, device=device)

    def __len__(self) -> int:
        """How many layers there are."""
        return len(self._layers)

    def rewind(self) -> None:
        """The next batch is the first one again."""
        self._batch = 0

    @contextmanager
    def at(self, position: int) -> Iterator[Callable[[Inputs], None]]:
        """Step through batches as far as the layer at ``position``, or the end where that is the number of layers.

        The layers before it have their final values; those before the last of them are not run again.

        Raises:
            ModelError: A layer depends on more than the one before it, or a batch goes another way than the first did.
                (The latter in the block.)
        """
        self.rewind()
        self._lost.zero_()
        for given in self._given:
            for number in range(position - 2):
                if number not in self._ends:
                    given[number] = tree_map(_gone, given[number])
        layers = self._layers
        behind, live = layers[: max(position - 1, 0)], layers[max(position - 1, 0) : position + 1]
        hooks = [layer.register_forward_pre_hook(self._inspect, with_kwargs=True) for layer in live]
        if position:
            hooks.append(layers[position - 1].register_forward_hook(partial(self._keep, position - 1)))
        if position + 1 < len(layers):
            hooks.append(layers[position + 1].register_forward_pre_hook(_enough))
        elif position < len(layers):
            hooks.append(layers[position].register_forward_hook(_enough))
        try:
            for number, layer in enumerate(behind):
                vars(layer)["forward"] = partial(self._replay, number)
            yield partial(self._step, to_the_end=position == len(layers))
        finally:
            for layer in behind:
                vars(layer).pop("forward", None)
            for hook in hooks:
                hook.remove()
        if self._lost:
            layer = layers[min(position, len(layers) - 1)]
            raise ModelError(
                f"The layers of this model cannot be merged one by one: at layer {position} "
                f"({type(layer).__name__}) something is not a number, so it reads more than what the layer before it "
                "gave, or its values overflow. Use regmean in the place of regmean++, or dtype: float32 if that "
                "layer overflows."
            )

    def _step(self, inputs: Inputs, *, to_the_end: bool) -> None:
        if self._batch == len(self._given):
            self._given.append({})
        try:
            with torch.no_grad():
                self._forward(inputs)
        except _Enough:
            arrived = True
        else:
            arrived = to_the_end
        if not arrived:
            raise ModelError(
                f"Batch {self._batch} does not go through the model's layers in the order in which the first one did, "
                "so that they cannot be merged one by one. Use regmean in the place of regmean++."
            )
        self._batch += 1

    def _keep(self, position: int, layer: nn.Module, arguments: object, output: object) -> None:
        """Keep what a layer gives, out of reach of what is done to it in place afterwards."""
        self._given[self._batch][position] = tree_map(_copied_to(torch.device("cpu")), output)

    def _replay(self, position: int, *arguments: object, **named: object) -> object:
        """What a layer gave: stands for its forward."""
        return tree_map(_copied_to(self._device), self._given[self._batch][position])

    def _inspect(self, layer: nn.Module, arguments: tuple[object, ...], named: dict[str, object]) -> None:
        """Note whether a layer is given anything of a `_Gone`; read from the device once per pass."""
        for value in tree_leaves((arguments, named)):
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                self._lost |= to_device(value.isnan().any(), self._device)


class _Enough(Exception):
    """Ends a forward pass that has gone far enough."""


def _enough(*_: object) -> None:
    raise _Enough


@dataclass(frozen=True)
class _Gone:
    """Stands for what no layer reads any more; it would be read as not-a-number."""

    shape: torch.Size
    dtype: torch.dtype


def _gone(value: object) -> object:
    return _Gone(value.shape, value.dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _copied_to(device: torch.device) -> Callable[[object], object]:
    def copied(value: object) -> object:
        if isinstance(value, _Gone):
            return torch.full(value.shape, torch.nan, dtype=value.dtype, device=device)
        return value.to(device, copy=True) if isinstance(value, torch.Tensor) else value

    return copied
