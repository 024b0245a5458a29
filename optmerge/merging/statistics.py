"""Statistics of calibration data (seam B): the Gram matrices of what a model's linear layers are given.

They are gathered by forward pre-hooks while the model runs over plain batches, so that any architecture will do. What
cannot be told from a layer's input gets none, and methods treat it as what has no Gram matrix: a weight that two
modules share (a head tied to the embedding), one that is no linear layer's (fused mixtures of experts), and one whose
layer is never called as a module.

    for part in collect_grams(model, parameters, lambda: batches, lambda inputs: model(**inputs)):
        part["encoder.layer.0.output.dense.weight"]         # fp32[d_in, d_in] on the CPU
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import nn

from optmerge.models.device import to_device

Inputs = Mapping[str, torch.Tensor]
_MASKS = ("attention_mask", "decoder_attention_mask")
BUDGET = 4 << 30  # bytes of Gram matrices on the model's device at a time


def collect_grams(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    batches: Callable[[], Iterable[Inputs]],
    forward: Callable[[Inputs], object],
    *,
    budget: int = BUDGET,
) -> Iterator[dict[str, torch.Tensor]]:
    """G = X^T X / tokens of the inputs X of every linear layer (Jin et al. 2023, section 3.1), in fp32.

    Padding does not count: rows where a batch's ``attention_mask`` [B, T], or ``decoder_attention_mask``, is zero are
    left out. Which mask a layer's rows go by is told by their number.

    Args:
        model: In evaluation mode; its values are not changed.
        parameters: Whose layers are wanted, by name.
        batches: Gives the inputs, on the model's device; asked once per pass.
        forward: Runs the model on one batch.
        budget: Bytes of the matrices of one pass (4 d_in^2 each, and at least one matrix). What does not fit is
            gathered in further passes over the data.

    Yields:
        Per pass, parameter -> fp32[d_in, d_in] on the CPU.
    """
    layers = linear_layers(model, parameters)
    for names in passes({name: 4 * _inputs(layer) ** 2 for name, layer in layers.items()}, budget):
        grams = {name: GramSum(_inputs(layers[name]), parameters[name].device) for name in names}
        yield _one_pass({name: layers[name] for name in names}, grams, batches(), forward)


def linear_layers(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Module]:
    """Parameter -> the linear layer whose weight it is, of those that no other module has."""
    owners: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(module)
    found = {}
    for name, parameter in parameters.items():
        own = owners.get(id(parameter), [])
        if len(own) == 1 and _is_linear(own[0]) and own[0].weight is parameter:
            found[name] = own[0]
    return found


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_input_first(module)


def is_input_first(layer: nn.Module) -> bool:
    """Whether a linear layer is GPT-2's, whose weight is [in, out]."""
    return type(layer).__name__ == "Conv1D"


def _inputs(layer: nn.Module) -> int:
    """d_in."""
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return weight.shape[0 if is_input_first(layer) else 1]


def passes(sizes: Mapping[str, int], budget: int) -> Iterator[list[str]]:
    """What is gathered in each pass, in its order: as many as fit into the budget, and one at least.

    Args:
        sizes: Name -> bytes.
        budget: Bytes of a pass.
    """
    names: list[str] = []
    taken = 0
    for name, size in sizes.items():
        if names and taken + size > budget:
            yield names
            names, taken = [], 0
        names.append(name)
        taken += size
    if names:
        yield names


def _one_pass(
    layers: Mapping[str, nn.Module],
    grams: Mapping[str, GramSum],
    batches: Iterable[Inputs],
    forward: Callable[[Inputs], object],
) -> dict[str, torch.Tensor]:
    hooks = [layer.register_forward_pre_hook(grams[name].hook) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            for inputs in batches:
                apart = told_apart(inputs)
                hidden = padding(apart)
                for gram in grams.values():
                    gram.hidden = hidden
                forward(apart)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: mean for name, gram in grams.items() if (mean := gram.mean()) is not None}


def padding(inputs: Inputs) -> dict[int, torch.Tensor]:
    """Number of rows -> bool[rows, 1], which of them are padding, by the masks of a batch that is `told_apart`."""
    masks = (inputs.get(name) for name in _MASKS)
    return {mask.numel(): mask.reshape(-1, 1) == 0 for mask in masks if mask is not None}


def told_apart(inputs: Inputs) -> Inputs:
    """The inputs, with one more place of padding for a decoder that has as many as its encoder."""
    widths = [inputs[name].shape[1] for name in _MASKS if name in inputs]
    if len(widths) < len(_MASKS) or widths[0] != widths[1]:
        return inputs
    wider = ("decoder_input_ids", "decoder_attention_mask")
    return {name: nn.functional.pad(value, (0, 1)) if name in wider else value for name, value in inputs.items()}


class GramSum:
    """The running sum of one layer's X^T X; nothing is read back from the device before `mean`.

    Attributes:
        hidden: What of the batch is `padding`.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.hidden: Mapping[int, torch.Tensor] = {}
        self._sum = torch.zeros(size, size, device=device)
        self._hidden_rows = torch.zeros((), dtype=torch.int64, device=device)
        self._rows = 0

    def hook(self, layer: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        """A forward pre-hook that counts and adds the layer's input."""
        self.count(arguments[0])
        self.add(arguments[0])

    def count(self, values: torch.Tensor) -> None:
        """Count the rows of [..., d], padding apart."""
        rows = values.numel() // self._sum.shape[0]
        hidden = self._padding(rows)
        if hidden is not None:
            self._hidden_rows += hidden.sum()
        self._rows += rows

    def add(self, values: torch.Tensor) -> None:
        """Add X^T X of rows X [..., d] that are counted once, whatever is added of them."""
        rows = values.reshape(-1, self._sum.shape[0]).float()
        # A layer that sees one row per example (a pooler) or per image patch sees no padding.
        hidden = self._padding(len(rows))
        if hidden is not None:
            rows = rows.masked_fill(hidden, 0.0)
        self._sum.addmm_(rows.mT, rows)

    def _padding(self, rows: int) -> torch.Tensor | None:
        """What of so many rows is padding, on the layer's device, which need not be the one of the inputs."""
        hidden = self.hidden.get(rows)
        return None if hidden is None else to_device(hidden, self._sum.device)

    def mean(self) -> torch.Tensor | None:
        """On the CPU; None if the layer has seen no row."""
        count = self._rows - int(self._hidden_rows)
        return self._sum.div_(count).cpu() if count else None
