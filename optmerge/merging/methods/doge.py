"""DOGE, adaptive projective gradient descent (Wei et al. 2025; as in FusionBench's "DOGE TA").

    subspace = shared_subspace(task_vectors, divisor=6, tolerance=1e-6)
    change = shared_change(task_vectors, scales, subspace, project="gradient", steps=400, lr=1e-4)
    merged = sum(scale * (tau + change) for scale, tau in zip(scales, task_vectors))

Every expert's task vector is scaled to one norm, lambda_i = eta / ||tau_i||_F, and a change D that all of them share is
added: the merge is sum_i lambda_i (tau_i + D) on the largest entries of each tau_i, to which those of 0 never belong
where any are left out (16-bit experts have many). D minimises, row by row,

    sum_j <tau_j, tau_j - sum_i lambda_i (tau_i + D)>^2

by Adam, with steps that keep out of the subspace in which the experts' leading left singular vectors lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch

from optmerge.config.methods import Embeddings, Others, Scope
from optmerge.merging.methods.base import Method, Models
from optmerge.merging.methods.descent import Adam
from optmerge.merging.methods.elementwise import Elementwise
from optmerge.merging.methods.jointly import one_by_one, oriented, stored
from optmerge.merging.methods.matrixwise import plain_factor, routed
from optmerge.merging.methods.reduce import WeightedSum
from optmerge.merging.methods.spectrum import cut_svd
from optmerge.merging.methods.trim import Trimmed
from optmerge.records import Progress

_EQUAL = 1e-5  # relative difference of singular values that is rounding


class Doge(Method):
    """Linear maps by descent; the rest by a plain rule.

    Args:
        weights: What eta is multiplied by, one number per expert.
        eta: Norm of an expert's part of a matrix.
        density: Share of each task vector's entries that is kept.
        scope: Over what the largest are chosen; ``model`` is over all linear maps of the model.
        subspace: See `shared_subspace`.
        tolerance: See `shared_subspace`.
        project: See `shared_change`.
        steps: See `shared_change`.
        lr: See `shared_change`.
        others: What vectors get: norms, biases, scalars.
        embeddings: What embeddings and heads get.
    """

    def __init__(
        self,
        weights: tuple[float, ...],
        *,
        eta: float,
        density: float,
        scope: Scope,
        subspace: float,
        tolerance: float,
        project: Literal["gradient", "update"],
        steps: int,
        lr: float,
        others: Others,
        embeddings: Embeddings,
    ) -> None:
        super().__init__(weights)
        self.eta = eta
        self.density = density
        self.others = others
        self.embeddings = embeddings
        self._subspace = partial(shared_subspace, divisor=subspace, tolerance=tolerance)
        self._change = partial(shared_change, project=project, steps=steps, lr=lr)
        self._task_vectors = Elementwise(weights)
        self._trimmed = Elementwise(
            weights,
            transforms=(partial(Trimmed, density=density, scope=scope, among=self._is_map),),
            by_rows=scope == "row",
        )

    def prepare(self, models: Models, progress: Progress | None = None) -> None:
        """See `Method.prepare`."""
        self._trimmed.prepare(models, progress)

    def delta(self, models: Models, name: str) -> torch.Tensor:
        """See `Method.delta`."""
        kind = models.kind(name)
        rule = routed(kind, others=self.others, embeddings=self.embeddings)
        if rule != "matrix":
            return self._task_vectors.delta(models, name).mul_(plain_factor(rule, len(self.weights)))
        deltas = self._task_vectors.expert_deltas(models, name)
        kept = self._trimmed.expert_deltas(models, name) if self.density < 1 else []
        matrices = [oriented(tensor, kind) for tensor in (*deltas, *kept)]
        return stored(one_by_one(self._merged)(matrices), kind)

    def _is_map(self, models: Models, name: str) -> bool:
        """Whether a parameter is merged as a linear map."""
        return routed(models.kind(name), others=self.others, embeddings=self.embeddings) == "matrix"

    def _merged(self, matrices: Sequence[torch.Tensor]) -> torch.Tensor:
        """From K task vectors and the same ones trimmed (or none, if nothing is trimmed) to the merge."""
        experts = len(self.weights)
        task_vectors, kept = [matrix.contiguous() for matrix in matrices[:experts]], matrices[experts:]
        norms = [float(torch.linalg.vector_norm(task_vector)) for task_vector in task_vectors]
        scales = tuple(
            weight * self.eta / norm if norm else 0.0 for weight, norm in zip(self.weights, norms, strict=True)
        )
        change = self._change(task_vectors, scales, self._subspace(task_vectors))
        parts = list(kept) or task_vectors
        for part in parts:
            part.add_(change * (part != 0) if kept else change)
        WeightedSum(scales)(parts, change)
        return change


def shared_subspace(task_vectors: Sequence[torch.Tensor], *, divisor: float, tolerance: float) -> torch.Tensor:
    """An orthonormal basis of the outputs in which the experts' leading left singular vectors lie.

    Each expert gives as many as fit when all of them share the rank, and the leading left singular vectors of all
    these together are the basis. Where singular values are equal at its end (one expert, or experts that are the same),
    which of them belong to it would be a matter of rounding; it then has all of them.

    Args:
        task_vectors: K task vectors, [out, in] each, fp32 or fp64; finite.
        divisor: The basis has the rank min(out, in) divided by it, rounded down, 1 or more.
        tolerance: Singular values at or below this share of the largest are cut.

    Returns:
        [out, k]; k may be 0.
    """
    rank = min(task_vectors[0].shape)
    each, size = max(1, rank // len(task_vectors)), int(rank / divisor)
    leading = [cut_svd(task_vector, tolerance=tolerance).u[:, :each] for task_vector in task_vectors]
    u, sigma, _ = cut_svd(torch.cat(leading, dim=1), tolerance=tolerance)
    size = min(size, int(torch.count_nonzero(sigma)))
    if size:
        size = int(torch.count_nonzero(sigma >= sigma[size - 1] * (1 - _EQUAL)))
    return u[:, :size]


def shared_change(
    task_vectors: Sequence[torch.Tensor],
    scales: Sequence[float],
    subspace: torch.Tensor,
    *,
    project: Literal["gradient", "update"],
    steps: int,
    lr: float,
) -> torch.Tensor:
    """D after some steps of Adam from zero.

    Args:
        task_vectors: K task vectors, [out, in] each.
        scales: lambda_i, one per expert.
        subspace: [out, k], orthonormal columns.
        project: ``gradient`` takes the part in the subspace out of what Adam sees, whose scaling entry by entry leads
            some of it back; ``update`` takes it out of every step, so that D has none.
        steps: How many.
        lr: Learning rate, in the unit of the weights.

    Returns:
        [out, in]
    """
    together = sum(scales)
    scaled = torch.zeros_like(task_vectors[0], memory_format=torch.contiguous_format)
    for task_vector, scale in zip(task_vectors, scales, strict=True):
        scaled.add_(task_vector, alpha=scale)
    # <tau_j, tau_j - sum_i lambda_i tau_i> of every row: what is left where D is zero.
    left = [(task_vector * (task_vector - scaled)).sum(1, keepdim=True) for task_vector in task_vectors]
    change, gradient, product = torch.zeros_like(scaled), torch.empty_like(scaled), scaled
    residual = left[0].clone()
    inside = scaled.new_empty(subspace.shape[1], scaled.shape[1])
    adam = Adam(scaled, lr=lr)
    for _ in range(steps):
        gradient.zero_()
        for task_vector, missing in zip(task_vectors, left, strict=True):
            torch.mul(task_vector, change, out=product)
            torch.sum(product, 1, keepdim=True, out=residual)
            residual.mul_(-together).add_(missing).mul_(-2 * together)
            gradient.addcmul_(task_vector, residual)
        if project == "gradient":
            _take_out(gradient, subspace, inside)
        step = adam(gradient)
        if project == "update":
            _take_out(step, subspace, inside)
        change += step
    return change


def _take_out(matrix: torch.Tensor, subspace: torch.Tensor, buffer: torch.Tensor) -> None:
    """Subtract U U^T matrix, in place."""
    torch.mm(subspace.mT, matrix, out=buffer)
    matrix.addmm_(subspace, buffer, alpha=-1)
