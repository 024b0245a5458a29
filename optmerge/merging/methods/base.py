"""What a method is, and what it sees of the models.

A method turns the experts' parameters into one merged delta per parameter, at scale 1; the scale of the papers is the
coefficient of the direction. It is put together from small stages, each with a module of its own:

    A  align       experts onto the base: none of today's methods needs it; it would stand between `Models` and C,
                   as one more `TaskVectors`
    B  statistics  Gram matrices, gradients and the like, which `Models` hands out and `Method.needs` names
    C  transform   one expert's task vector by itself         `vectors`, `trim`, `drop`, `crumbs`, `rank_drop`, and
                                                              `truncate_spectrum` of `spectrum`
    D  frame       a basis that the experts share             `frames`, `common_space`, `decomposed`
    E  weigh       weights, sign election, scores, masks      `signs`, `energy`, `pcb`, `sce`, `elected`, `widen`
    F  reduce      sum, mean, disjoint mean, linear solve     `reduce`, `linear`, `gram_solve`, `combination`, and by
                   steps                                      `conjugate_gradient`, `doge`, `wudi`
    G  finish      flat spectrum                              `spectrum`

The schedule is one-shot: a parameter's delta depends on the experts and on what `Method.prepare` gathered. A method
that needs ``merged-grams`` goes layer by layer: the same `Method.delta`, with `Models` whose statistics are measured
anew before each layer (`optmerge.merging.models_view.LayerByLayer`). A fold over experts (`fold`) is a function of all
task vectors of a parameter (`jointly`), whose state is that parameter's merge so far; what it asks of the whole model,
a norm, `prepare` gathers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from optmerge.config.methods import Need
from optmerge.models.lora_factors import LoraFactors
from optmerge.models.roles import RoleKind
from optmerge.records import Progress

Structure = Literal["vector", "matrix", "stack", "convolution"]


@dataclass(frozen=True, slots=True)
class TensorKind:
    """What a parameter is, for methods that treat matrices otherwise than the rest.

    Attributes:
        role: What it is for.
        input_first: Stored [in, out], as in GPT-2's Conv1D, and not [out, in]. Stacks likewise, after their first
            dimension.
        shape: Of the parameter in the module.
        layer: Which transformer layer it is in; None outside of them.
    """

    role: RoleKind
    input_first: bool
    shape: tuple[int, ...]
    layer: int | None = None

    @property
    def structure(self) -> Structure:
        """How its entries are arranged, leading dimensions of size 1 apart.

        A vector is everything with at most one dimension larger than 1 once a convolution [out, in, ...] is seen as
        [out, in * ...]. Three dimensions in an MLP are a stack of matrices (fused experts); elsewhere, and from four
        on, a convolution.
        """
        shape = self.shape
        while len(shape) > 1 and shape[0] == 1:
            shape = shape[1:]
        stacked = len(shape) == 3 and self.role == "mlp"
        matrix = shape[1:] if stacked else (*shape[:1], _product(shape[1:]))
        if len(shape) < 2 or min(matrix) < 2:
            return "vector"
        if stacked:
            return "stack"
        return "matrix" if len(shape) == 2 else "convolution"


class Models(Protocol):
    """The base and its experts, as a method sees them. Tensors are on the CPU and never written to."""

    @property
    def experts(self) -> tuple[str, ...]:
        """Names of the experts, in the order of the search file."""

    @property
    def names(self) -> tuple[str, ...]:
        """The merged parameters, in module order."""

    def base(self, name: str) -> torch.Tensor:
        """A parameter of the base, in module layout and stored dtype."""

    def expert(self, expert: str, name: str) -> torch.Tensor:
        """A parameter of an expert, in module layout and stored dtype."""

    def kind(self, name: str) -> TensorKind:
        """What a parameter is."""

    def factors(self, expert: str, name: str) -> LoraFactors | None:
        """An expert's task vector as a product of two thin matrices, in module layout; None where it is not known so.

        It is exact, where `expert` less `base` has the rounding of the base's dtype in it: a matrix of full rank,
        which a method that makes singular values alike would raise to the size of what was learnt.
        """

    def statistic(self, need: Need, expert: str, name: str) -> torch.Tensor | None:
        """What an expert's own calibration data say about a parameter: fp32, on the CPU; None where they say nothing.

        By ``need``, which the method must have among its `Method.needs`:

            grams           [d_in, d_in]    mean of x x^T over the inputs x of that linear layer
            merged-grams    [d_in, d_in]    the same of inputs that came through the layers merged so far
            output-grams    [d_out, d_out]  mean of g g^T over the gradients g of the log-likelihood by its outputs
            fisher          like it         mean of the squared gradients of the log-likelihood, over the expert's own
                                            predictions: no labels
            saliency        like it         mean of |theta dL/dtheta| with L the loss on the labels
            base-saliency   like it         the same, of the base on the expert's data
            logit-distance  []              mean distance of another expert's logits from this one's; ``name`` is the
                                            other expert's
        """


class Method(ABC):
    """A merging method over a fixed list of experts.

    Once `prepare` has returned, the deltas of different parameters may be asked for from several threads at once.

    Attributes:
        needs: The statistics that `Models` must be able to hand out.
        weights: One number per expert. Where the method is ``linear``, the delta is their sum with `expert_deltas`.
        linear: The delta is linear in per-expert scales: `expert_deltas` do not depend on the weights.
        keeps_base: The delta of a parameter that all experts have as the base has it is zero, up to rounding.
    """

    needs: frozenset[Need] = frozenset()
    linear: bool = False
    keeps_base: bool = True

    def __init__(self, weights: tuple[float, ...]) -> None:
        self.weights = weights

    def prepare(self, models: Models, progress: Progress | None = None) -> None:  # noqa: B027
        """Gather what depends on all parameters at once, such as a threshold over the whole model.

        Args:
            models: The models whose deltas will be asked for.
            progress: Told what is done, how much of it, and of how much.
        """

    @abstractmethod
    def delta(self, models: Models, name: str) -> torch.Tensor:
        """The merged delta of one parameter: fp32 (fp64 for an fp64 base), module layout, contiguous."""

    def expert_deltas(self, models: Models, name: str) -> list[torch.Tensor]:
        """One tensor per expert, whose sum weighted by ``weights`` is `delta`. Only where ``linear``."""
        raise NotImplementedError(f"{type(self).__name__} is not linear in per-expert scales")


def working_dtype(tensor: torch.Tensor) -> torch.dtype:
    """fp64 for fp64, fp32 for everything else."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _product(sizes: tuple[int, ...]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product
