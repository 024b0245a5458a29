"""WIDEN (Yu et al. 2024, "Extend Model Merging from Fine-Tuned to Pre-Trained Large Language Models").

    factors = column_scores(base, [tau_1, tau_2], ratio=1.0, calibration=1.0)       # [K, in]
    merged = sum(factor * tau for factor, tau in zip(factors, [tau_1, tau_2]))

A weight matrix [out, in] is taken apart into the magnitudes and directions of its columns. How much an expert changes a
column's magnitude |m_i - m_0| and direction 1 - cos, ranked among its own columns, says how important the column is to
it; the softmax of the ranks over the experts, or a fixed score where a rank is above the average, is what its task
vector is multiplied by there.
"""

from __future__ import annotations

from typing import Literal

import torch

from optmerge.config.methods import Embeddings, Others
from optmerge.merging.methods.base import Method, Models, TensorKind, working_dtype
from optmerge.merging.methods.elementwise import Elementwise
from optmerge.merging.methods.jointly import oriented
from optmerge.merging.methods.matrixwise import plain_factor, routed
from optmerge.merging.methods.reduce import WeightedSum


class Widen(Method):
    """Columns of matrices weighted by `column_scores`, entries of vectors by `scores` of their magnitudes.

    Args:
        weights: One per expert; the scores do not depend on them, so that the method is linear in them.
        ratio: See `scores`.
        calibration: See `scores`.
        others: What vectors get: norms, biases, scalars.
        embeddings: What embeddings and heads get. A column of an embedding is the vector of one token.
    """

    linear = True

    def __init__(
        self,
        weights: tuple[float, ...],
        *,
        ratio: float,
        calibration: float,
        others: Others | Literal["score"],
        embeddings: Embeddings,
    ) -> None:
        super().__init__(weights)
        self.ratio = ratio
        self.calibration = calibration
        self.others = others
        self.embeddings = embeddings
        self._task_vectors = Elementwise(weights)

    def delta(self, models: Models, name: str) -> torch.Tensor:
        """See `Method.delta`."""
        rule = self._rule(models.kind(name))
        if rule == "matrix" or rule == "score":
            parts = self.expert_deltas(models, name)
            WeightedSum(self.weights)(parts, parts[0])
            return parts[0]
        return self._task_vectors.delta(models, name).mul_(plain_factor(rule, len(self.weights)))

    def expert_deltas(self, models: Models, name: str) -> list[torch.Tensor]:
        """See `Method.expert_deltas`."""
        kind = models.kind(name)
        deltas = self._task_vectors.expert_deltas(models, name)
        rule = self._rule(kind)
        if rule == "matrix":
            base = _columns(models.base(name).to(working_dtype(deltas[0])), kind)
            views = [_columns(delta, kind) for delta in deltas]
            factors = column_scores(base, views, ratio=self.ratio, calibration=self.calibration).unsqueeze(-2)
        elif rule == "score":
            views = deltas
            magnitudes = torch.stack([delta.abs().flatten() for delta in deltas])
            factors = scores(magnitudes, ratio=self.ratio, calibration=self.calibration)
            factors = factors.reshape(len(deltas), *kind.shape)
        else:
            return [delta.mul_(plain_factor(rule, len(deltas))) for delta in deltas]
        for view, factor in zip(views, factors, strict=True):
            view.mul_(factor)
        return deltas

    def _rule(self, kind: TensorKind) -> Embeddings | Literal["score"]:
        if kind.structure == "vector":
            return self.others
        return routed(kind, others="base", embeddings=self.embeddings)


def column_scores(base: torch.Tensor, deltas: list[torch.Tensor], *, ratio: float, calibration: float) -> torch.Tensor:
    """What each expert's columns are multiplied by: the mean of the scores by magnitude and by direction.

    Args:
        base: [..., out, in], fp32 or fp64; finite.
        deltas: K task vectors of that shape.
        ratio: See `scores`.
        calibration: See `scores`.

    Returns:
        [K, ..., in] in the dtype of the base.
    """
    changes = [column_changes(base, delta) for delta in deltas]
    total = torch.zeros((), dtype=torch.float64, device=base.device)
    for change in (torch.stack(kind) for kind in zip(*changes, strict=True)):
        smaller = torch.searchsorted(change.sort(dim=-1).values, change).double()  # columns that change less
        total = total + scores(smaller, unit=change.shape[-1], ratio=ratio, calibration=calibration)
    return (total / 2).to(base.dtype)


def column_changes(base: torch.Tensor, delta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """By how much a task vector changes the norm of each column, and its direction.

    Both are made from the task vector and not from two matrices that differ little: ||v|| - ||u|| = (2 u.d + d.d) /
    (||u|| + ||v||) and 1 - cos(u, v) = (d.d - (||v|| - ||u||)^2) / (2 ||u|| ||v||) for v = u + d.

    Args:
        base: [..., out, in]
        delta: [..., out, in]

    Returns:
        Two tensors [..., in], fp64: 0 or more, and 0 to 2. A column that is zero before or after, and not both, has
        no direction in common with the other one: 1.
    """
    before = torch.linalg.vector_norm(base, dim=-2, dtype=torch.float64)
    squared = torch.linalg.vector_norm(delta, dim=-2, dtype=torch.float64).square()
    gain = 2 * torch.sum(base * delta, dim=-2, dtype=torch.float64) + squared
    after = (before.square() + gain).clamp(min=0).sqrt()
    both = before + after
    growth = gain / both.masked_fill(both == 0, 1)
    product = 2 * before * after
    turned = ((squared - growth.square()) / product.masked_fill(product == 0, 1)).clamp(0, 2)
    turned = torch.where((product == 0) & (squared > 0), 1.0, turned)
    return growth.abs(), turned


def scores(significance: torch.Tensor, *, ratio: float, calibration: float, unit: float = 1) -> torch.Tensor:
    """The softmax over the experts, and ``calibration`` where an expert is above ``ratio`` times its own average.

    Args:
        significance: [K, ..., n]: of n columns or entries to K experts; 0 or more.
        ratio: 0 or more.
        calibration: 0 or more. With 1, what several experts find important is added up.
        unit: What the significance is divided by before the softmax.

    Returns:
        [K, ..., n]
    """
    important = significance > ratio * significance.mean(dim=-1, keepdim=True)
    return torch.softmax(significance / unit, dim=0).masked_fill(important, calibration)


def _columns(tensor: torch.Tensor, kind: TensorKind) -> torch.Tensor:
    """A view [..., out, in] whose columns are scored."""
    matrix = oriented(tensor, kind)
    return matrix.mT if kind.role == "embedding" and kind.structure == "matrix" else matrix
