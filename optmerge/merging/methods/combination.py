"""Merges that combine the models' tensors by numbers which follow from their inner products alone (stages E and F).

    method = Combination(partial(spherical_mean, weights=(0.5, 0.5), steps=1), weights=(0.5, 0.5), origin="base")

A geodesic, a spherical mean and a shrinking by angles all lie in the span of the tensors, so that two passes suffice:
one for the K x K inner products, summed in fp64, and one for the combination. A parameter is read chunk by chunk and
never held as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from optmerge.config.methods import Along, Origin
from optmerge.merging.methods.base import Method, Models, TensorKind, working_dtype
from optmerge.merging.methods.jointly import oriented
from optmerge.merging.methods.vectors import CHUNK, Index, boxes

Rule = Callable[[torch.Tensor], torch.Tensor]
"""Inner products fp64[..., K, K] of K vectors -> their factors fp64[..., K]."""


class Combination(Method):
    """sum_k c_k v_k with c = rule(<v_i, v_j>), of task vectors or of weights.

    Args:
        rule: From inner products to factors.
        weights: One per expert; the rule knows of them.
        origin: ``base``: v_k are task vectors and the sum is the delta. ``zero``: v_k are the models' weights and the
            sum is the merged model.
        scope: What is one vector: a whole tensor, the inputs of one output, or what one input goes to.
        with_base: The base is a vector too, the first one.
        as_stored: Rows and columns are those of the stored tensor's last and first dimension (mergekit's), whatever
            its kind; else those of the linear map that it is.
    """

    def __init__(
        self,
        rule: Rule,
        *,
        weights: tuple[float, ...],
        origin: Origin,
        scope: Along = "tensor",
        with_base: bool = False,
        as_stored: bool = False,
    ) -> None:
        super().__init__(weights)
        self.rule = rule
        self.origin = origin
        self.scope = scope
        self.with_base = with_base
        self.as_stored = as_stored

    def delta(self, models: Models, name: str) -> torch.Tensor:
        """See `Method.delta`."""
        base, kind = models.base(name), models.kind(name)
        experts = [models.expert(expert, name) for expert in models.experts]
        result = torch.empty(base.shape, dtype=working_dtype(base))
        origin = self._seen(base, kind)
        points = [self._seen(tensor, kind) for tensor in ([base] if self.with_base else []) + experts]
        out = self._seen(result, kind)
        indices = [index for _, index in boxes(tuple(origin.shape), CHUNK, whole_rows=self.scope != "tensor")]
        products = torch.zeros(len(points), len(points), dtype=torch.float64)
        if self.scope == "tensor":
            for index in indices:
                products += inner_products([vector.reshape(-1) for vector in self._vectors(points, origin, index)])
        factors = self.rule(products)
        for index in indices:
            if self.scope != "tensor":
                factors = self.rule(inner_products(self._vectors(points, origin, index)))
            out[index] = self._combined(points, origin, index, factors)
        return result

    def _seen(self, tensor: torch.Tensor, kind: TensorKind) -> torch.Tensor:
        """The tensor as vectors along its last dimension; a view, if it is contiguous."""
        return tensor if self.scope == "tensor" else lines(tensor, kind, self.scope, as_stored=self.as_stored)

    def _vectors(self, points: Sequence[torch.Tensor], origin: torch.Tensor, index: Index) -> list[torch.Tensor]:
        if self.origin == "base":
            return _task_vectors(points, origin, index)
        return [point[index].to(working_dtype(origin)) for point in points]

    def _combined(
        self, points: Sequence[torch.Tensor], origin: torch.Tensor, index: Index, factors: torch.Tensor
    ) -> torch.Tensor:
        """The delta of one chunk, through task vectors: what all models share is not rounded."""
        vectors = _task_vectors(points, origin, index)
        shares = factors.to(vectors[0].dtype)
        if self.scope != "tensor":
            shares = shares.unsqueeze(-2)  # [..., 1, K] beside vectors [..., n]
        delta = torch.zeros_like(vectors[0])
        for number, vector in enumerate(vectors):
            delta += vector.mul_(shares[..., number])
        if self.origin == "zero":
            beyond = (factors.sum(dim=-1) - 1).to(delta.dtype)
            delta += origin[index].to(delta.dtype) * (beyond if self.scope == "tensor" else beyond.unsqueeze(-1))
        return delta


def inner_products(vectors: Sequence[torch.Tensor]) -> torch.Tensor:
    """fp64[..., K, K] of K tensors [..., n] of vectors along their last dimension."""
    stacked = torch.stack(list(vectors), dim=-2).double()
    return stacked @ stacked.mT


def lines(tensor: torch.Tensor, kind: TensorKind, scope: Along, *, as_stored: bool) -> torch.Tensor:
    """A parameter as [..., n], one vector along each line of the last dimension.

    What is no matrix is one vector; stacks are seen matrix by matrix, convolutions as [out, in * ...], and weights that
    are stored [in, out] are turned.

    Args:
        tensor: The parameter.
        kind: What it is.
        scope: ``row``: the vectors are the inputs of each output. ``column``: what each input goes to.
        as_stored: Rows along the last dimension and columns along the first, whatever they mean.
    """
    if as_stored:
        if not tensor.ndim:
            return tensor.reshape(1)
        return tensor if scope == "row" else tensor.transpose(0, -1)
    if kind.structure == "vector":
        return tensor.flatten().unsqueeze(0)
    matrices = oriented(tensor, kind)
    return matrices if scope == "row" else matrices.mT


def _task_vectors(points: Sequence[torch.Tensor], origin: torch.Tensor, index: Index) -> list[torch.Tensor]:
    dtype = working_dtype(origin)
    start = origin[index].to(dtype)
    return [point[index].to(dtype) - start for point in points]
