"""Gram matrices of the gradients by linear layers' outputs (seam B): the other factor of K-FAC.

    for part in collect_output_grams(model, parameters, losses):
        part["encoder.layer.0.output.dense.weight"]         # fp32[d_out, d_out] on the CPU

Examples of a batch do not see each other, so a batch's summed loss gives every row of a layer the gradient of its own
example (Martens and Grosse 2015, section 3). Padding is left out as in `optmerge.merging.statistics`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from optmerge.merging.gradient_statistics import differentiate
from optmerge.merging.statistics import (
    BUDGET,
    GramSum,
    Inputs,
    is_input_first,
    linear_layers,
    padding,
    passes,
    told_apart,
)

LARGEST = 1 << 14
"""Outputs of a layer; one with more, such as a language model's head, has no matrix."""

BatchLosses = Callable[[Inputs], Sequence[Tensor]]


def collect_output_grams(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    batches: Callable[[], Iterable[tuple[Inputs, BatchLosses]]],
    *,
    budget: int = BUDGET,
) -> Iterator[dict[str, Tensor]]:
    """H = sum over a batch's scalars of D^T D / tokens, D the gradients by every linear layer's outputs, in fp32.

    Args:
        model: In evaluation mode, with no parameter that wants a gradient.
        parameters: Whose layers are wanted, by name.
        batches: Gives the inputs, and what runs the model on them and gives scalars that share a graph: a batch's
            summed log-likelihood, or its parts. Asked once per pass.
        budget: Bytes of the matrices of one pass, as in `collect_grams`.

    Yields:
        Per pass, parameter -> fp32[d_out, d_out] on the CPU.
    """
    layers = {name: layer for name, layer in linear_layers(model, parameters).items() if _outputs(layer) <= LARGEST}
    for names in passes({name: 4 * _outputs(layer) ** 2 for name, layer in layers.items()}, budget):
        sums = {name: GramSum(_outputs(layers[name]), parameters[name].device) for name in names}
        hooks = [layers[name].register_forward_hook(_watch(total)) for name, total in sums.items()]
        try:
            with torch.enable_grad():
                for inputs, losses in batches():
                    apart = told_apart(inputs)
                    hidden = padding(apart)
                    for total in sums.values():
                        total.hidden = hidden
                    differentiate(losses(apart))
        finally:
            for hook in hooks:
                hook.remove()
        yield {name: mean for name, total in sums.items() if (mean := total.mean()) is not None}


def _watch(total: GramSum) -> Callable[[nn.Module, object, Tensor], Tensor]:
    """A forward hook that has the gradients by an output added."""

    def hook(layer: nn.Module, arguments: object, output: Tensor) -> Tensor:
        if not output.requires_grad:
            output = output.requires_grad_().clone()  # no leaf, so that it may be changed in place
        total.count(output)
        output.register_hook(total.add)  # type: ignore[no-untyped-call]
        return output

    return hook


def _outputs(layer: nn.Module) -> int:
    """d_out."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.shape[1 if is_input_first(layer) else 0]
