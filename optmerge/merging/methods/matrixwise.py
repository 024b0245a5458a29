"""Methods that treat matrices as linear maps, and route every other kind of tensor by an explicit rule.

Of one parameter all task vectors are held at once, with room for a few results beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, TypeVar

import torch

from optmerge.config.methods import Embeddings, Need, Others
from optmerge.merging.methods.base import Method, Models, TensorKind
from optmerge.merging.methods.elementwise import Elementwise
from optmerge.merging.methods.gram_solve import gram_mean
from optmerge.merging.methods.matrices import Matrix, as_matrices, dense, is_zero, summed, task_matrices
from optmerge.merging.methods.reduce import WeightedSum

Frame = Callable[[list[Matrix]], list[torch.Tensor]]
Finish = Callable[[Matrix], torch.Tensor]
Solve = Callable[..., torch.Tensor]
Rule = TypeVar("Rule", Embeddings, Embeddings | Literal["ties"])


def routed(kind: TensorKind, *, others: Rule, embeddings: Rule) -> Rule:
    """What a parameter gets: what is not a matrix the first rule, embeddings and heads the second."""
    if kind.structure == "vector":
        return others
    return embeddings if kind.role in ("embedding", "head") else "matrix"


def plain_factor(rule: Others, experts: int) -> float:
    """By which a task vector is multiplied in a plain rule: a share for the mean, 1 for the sum, 0 for the base."""
    return {"mean": 1 / experts, "sum": 1.0, "base": 0.0}[rule]


class Spectral(Method):
    """Matrices: a frame, the weighted sum of the experts in it, and a finish. The rest: mean, sum or base.

    Args:
        weights: One per expert.
        frame: K task vectors [..., m, n] -> what each contributes to the merge at weight 1 (stage D).
        finish: The merged matrix [..., m, n] -> the delta (stage G). The method is linear without one.
        others: What vectors get: norms, biases, scalars.
        embeddings: What embeddings and heads get.
    """

    def __init__(
        self,
        weights: tuple[float, ...],
        *,
        frame: Frame | None = None,
        finish: Finish | None = None,
        others: Others,
        embeddings: Embeddings,
    ) -> None:
        super().__init__(weights)
        self.frame = frame
        self.finish = finish
        self.others = others
        self.embeddings = embeddings
        self.linear = finish is None
        self._task_vectors = Elementwise(weights)

    def delta(self, models: Models, name: str) -> torch.Tensor:
        """See `Method.delta`."""
        kind = models.kind(name)
        rule = routed(kind, others=self.others, embeddings=self.embeddings)
        if rule != "matrix":
            return self._task_vectors.delta(models, name).mul_(plain_factor(rule, len(self.weights)))
        merged: Matrix
        if self.frame is not None:
            parts = self._parts(models, name, kind, self.frame)
            WeightedSum(self.weights)(parts, parts[0])
            merged = as_matrices(parts[0], kind)
        elif all(models.factors(expert, name) for expert in models.experts):
            merged = summed(task_matrices(models, name), self.weights)
        else:  # chunk by chunk
            merged = as_matrices(self._task_vectors.delta(models, name), kind)
        # A tensor that no expert touched has nothing to decompose.
        whole = dense(merged) if self.finish is None or is_zero(merged) else self.finish(merged)
        return whole.reshape(kind.shape)

    def expert_deltas(self, models: Models, name: str) -> list[torch.Tensor]:
        """See `Method.expert_deltas`."""
        if not self.linear:
            return super().expert_deltas(models, name)
        kind = models.kind(name)
        rule = routed(kind, others=self.others, embeddings=self.embeddings)
        if rule == "matrix" and self.frame is not None:
            return self._parts(models, name, kind, self.frame)
        factor = 1.0 if rule == "matrix" else plain_factor(rule, len(self.weights))
        return [delta.mul_(factor) for delta in self._task_vectors.expert_deltas(models, name)]

    def _parts(self, models: Models, name: str, kind: TensorKind, frame: Frame) -> list[torch.Tensor]:
        deltas = task_matrices(models, name)
        parts = [dense(delta) for delta in deltas] if all(map(is_zero, deltas)) else frame(deltas)
        return [part.reshape(kind.shape) for part in parts]


class LayerSolve(Method):
    """Linear layers by a solve with statistics of each, everything else by the mean or not at all.

    Args:
        weights: One per expert, 0 or more, not all 0.
        needs: The statistics that the solve takes, in its order.
        solve: (K task vectors [d_out, d_in], K matrices of each need, ...) -> the merged delta [d_out, d_in].
        others: What a parameter gets that lacks one of these statistics.
    """

    def __init__(
        self, weights: tuple[float, ...], *, needs: tuple[Need, ...], solve: Solve, others: Literal["mean", "base"]
    ) -> None:
        super().__init__(weights)
        self.needs = frozenset(needs)
        self.others = others
        self._wanted = needs
        self._solve = solve
        total = sum(weights)
        self._mean = Elementwise(tuple(weight / total for weight in weights))

    def delta(self, models: Models, name: str) -> torch.Tensor:
        """See `Method.delta`."""
        matrices = [[models.statistic(need, expert, name) for expert in models.experts] for need in self._wanted]
        known = [[matrix for matrix in of if matrix is not None] for of in matrices]
        if any(len(of) < len(models.experts) for of in known):
            mean = self._mean.delta(models, name)
            return mean if self.others == "mean" else mean.zero_()
        deltas = self._mean.expert_deltas(models, name)
        if not models.kind(name).input_first:
            return self._solve(deltas, *known)
        return self._solve([delta.mT for delta in deltas], *known).mT.contiguous()


class RegMean(LayerSolve):
    """Linear layers by least squares on their inputs.

    Args:
        weights: One per expert, 0 or more, not all 0.
        shrink: See `gram_mean`.
        ridge: See `gram_mean`.
        others: What a parameter without Gram matrices gets.
        grams: Of which inputs the Gram matrices are.
    """

    def __init__(
        self,
        weights: tuple[float, ...],
        *,
        shrink: float,
        ridge: float,
        others: Literal["mean", "base"],
        grams: Need = "grams",
    ) -> None:
        solve = partial(gram_mean, weights=weights, shrink=shrink, ridge=ridge)
        super().__init__(weights, needs=(grams,), solve=solve, others=others)
