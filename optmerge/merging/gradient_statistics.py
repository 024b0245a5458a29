"""Statistics of weight gradients, example by example (seam B): a Fisher matrix's diagonal, and SNIP's saliency.

A gradient that has been made is added to its sum at once and let go, so that beside the sums there is one gradient of
one parameter. Examples are differentiated one by one: the square of a sum over a batch would be another quantity.

    for part in collect_squares(parameters, losses):
        part["encoder.layer.0.output.dense.weight"]         # fp32, like the parameter, on the CPU

``losses`` is called once per pass and gives, for every example, scalars that share a graph. For the Fisher information
by the model's own predictions these are sqrt(p(y|x)) log p(y|x) for every class y, with p seen as a constant
(Matena and Raffel 2022, section 3.1); or log p(y|x) for one y that is drawn from p.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from optmerge.merging.statistics import BUDGET, passes

Losses = Callable[[], Iterable[Sequence[Tensor]]]
"""For every example, scalars that share a graph."""
Add = Callable[[Tensor, Tensor], object]


def collect_squares(
    parameters: Mapping[str, nn.Parameter], losses: Losses, *, budget: int = BUDGET
) -> Iterator[dict[str, Tensor]]:
    """The sum over an example's scalars of the squared gradients, in the mean over examples, in fp32.

    Args:
        parameters: By which is differentiated; their values are not changed.
        losses: See the module.
        budget: Bytes of the sums of one pass (4 per entry, and at least one parameter). What does not fit is gathered
            in further passes over the data.

    Yields:
        Per pass, parameter -> fp32 like it, on the CPU; none for what no gradient reaches.
    """

    def add(total: Tensor, gradient: Tensor) -> None:
        total.addcmul_(gradient, gradient)

    for _, sums in _collected(parameters, losses, add, budget):
        yield {name: value.cpu() for name, value in sums.items()}


def collect_saliency(
    parameters: Mapping[str, nn.Parameter], losses: Losses, *, budget: int = BUDGET
) -> Iterator[dict[str, Tensor]]:
    """|theta| times the mean over examples of |dL/dtheta|, in fp32 (Lee et al. 2019, SNIP, equation 4).

    See `collect_squares`. Every example has one scalar, its loss L.
    """

    def add(total: Tensor, gradient: Tensor) -> None:
        total += gradient.abs()

    for some, sums in _collected(parameters, losses, add, budget):
        yield {name: value.mul_(some[name].detach().abs()).cpu() for name, value in sums.items()}


def _collected(
    parameters: Mapping[str, nn.Parameter], losses: Losses, add: Add, budget: int
) -> Iterator[tuple[dict[str, nn.Parameter], dict[str, Tensor]]]:
    """Per pass, its parameters and the means over examples of what ``add`` has added."""
    for names in passes({name: 4 * parameter.numel() for name, parameter in parameters.items()}, budget):
        some = {name: parameters[name] for name in names}
        sums: dict[str, Tensor] = {}
        count = 0
        with _gradients_taken(some, sums, add):
            for scalars in losses():
                differentiate(scalars)
                count += 1
        yield some, {name: value.div_(count) for name, value in sums.items()}


def differentiate(scalars: Sequence[Tensor]) -> None:
    """Go back from each of some scalars that share a graph; from none that depends on nothing that wants a gradient."""
    for done, scalar in enumerate(scalars):
        if scalar.requires_grad:
            scalar.backward(retain_graph=done + 1 < len(scalars))  # type: ignore[no-untyped-call]


def _gradients_taken(parameters: Mapping[str, nn.Parameter], sums: dict[str, Tensor], add: Add) -> ExitStack:
    """Within it, gradients by these parameters go into ``sums``, and nothing else has one."""

    def take(name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            assert parameter.grad is not None, "it has been accumulated just now"
            if name not in sums:
                sums[name] = torch.zeros_like(parameter, dtype=torch.float32)
            add(sums[name], parameter.grad.float())
            parameter.grad = None

        return hook

    stack = ExitStack()
    stack.enter_context(torch.enable_grad())
    for name, parameter in parameters.items():
        stack.callback(parameter.requires_grad_, parameter.requires_grad)
        parameter.requires_grad_(True)
        hook = parameter.register_post_accumulate_grad_hook(take(name))  # type: ignore[no-untyped-call]
        stack.callback(hook.remove)
    return stack
