"""Decom-Renorm-Merge: TIES on the coordinates of all task vectors in one basis.

    method = Decomposed(weights, direction="horizontal", drop=0.8, tolerance=0.01, others="ties", embeddings="ties")
    method.expert_deltas(models, name)

Chaichana et al. 2025, "Decom-Renorm-Merge". Side by side, the task vectors [tau_1 ... tau_K] = U diag(sigma) [V_1 ...
V_K]^T have a basis U of the outputs in common. Which coordinates are dropped is decided on rows of V_i^T of length 1,
so that an expert's weak directions count as much as its strong ones; their own lengths are given back afterwards. Signs
are elected and the mean is taken among the coordinates, and U leads back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from optmerge.config.methods import Embeddings, Others
from optmerge.merging.methods.base import Method, Models, TensorKind
from optmerge.merging.methods.elementwise import Elementwise
from optmerge.merging.methods.jointly import oriented, stored
from optmerge.merging.methods.matrixwise import plain_factor, routed
from optmerge.merging.methods.reduce import WeightedSum
from optmerge.merging.methods.split import TiesSplit, agreeing_shares
from optmerge.merging.methods.trim import keep_largest, rounded

Direction = Literal["horizontal", "vertical"]
Ties = Literal["ties"]


class Decomposed(Method):
    """Matrices in a shared basis; the rest by TIES without its trim, or by the plain rules.

    It is linear in the weights: they act after signs are elected, and are not divided by.

    Args:
        weights: One per expert.
        direction: ``horizontal`` shares the basis of the outputs (DRM-H), ``vertical`` that of the inputs (DRM-V).
        drop: Share of the coordinates that is dropped, see `decomposed_parts`.
        tolerance: See `decomposed_parts`.
        others: What vectors get: norms, biases, scalars.
        embeddings: What embeddings and heads get.
    """

    linear = True

    def __init__(
        self,
        weights: tuple[float, ...],
        *,
        direction: Direction,
        drop: float,
        tolerance: float,
        others: Others | Ties,
        embeddings: Embeddings | Ties,
    ) -> None:
        super().__init__(weights)
        self.direction = direction
        self.drop = drop
        self.tolerance = tolerance
        self.others = others
        self.embeddings = embeddings
        self._task_vectors = Elementwise(weights)
        self._ties = TiesSplit(weights, keep=agreeing_shares)

    def delta(self, models: Models, name: str) -> torch.Tensor:
        """See `Method.delta`."""
        kind = models.kind(name)
        rule = routed(kind, others=self.others, embeddings=self.embeddings)
        if rule == "ties":
            return self._ties.delta(models, name)
        if rule != "matrix":
            return self._task_vectors.delta(models, name).mul_(plain_factor(rule, len(self.weights)))
        parts = self._parts(models, name, kind)
        WeightedSum(self.weights)(parts, parts[0])
        return parts[0]

    def expert_deltas(self, models: Models, name: str) -> list[torch.Tensor]:
        """See `Method.expert_deltas`."""
        kind = models.kind(name)
        rule = routed(kind, others=self.others, embeddings=self.embeddings)
        if rule == "ties":
            return self._ties.expert_deltas(models, name)
        if rule == "matrix":
            return self._parts(models, name, kind)
        factor = plain_factor(rule, len(self.weights))
        return [delta.mul_(factor) for delta in self._task_vectors.expert_deltas(models, name)]

    def _parts(self, models: Models, name: str, kind: TensorKind) -> list[torch.Tensor]:
        deltas = self._task_vectors.expert_deltas(models, name)
        matrices = [oriented(delta, kind) for delta in deltas]
        turned = self.direction == "vertical"
        each = [matrix.mT if turned else matrix for matrix in matrices]
        if kind.structure == "stack":  # how many coordinates there are differs from matrix to matrix
            stacks = [self._of_matrices([stack[index] for stack in each]) for index in range(len(each[0]))]
            parts = [torch.stack(list(expert)) for expert in zip(*stacks, strict=True)]
        else:
            parts = self._of_matrices(each)
        return [stored(part.mT if turned else part, kind) for part in parts]

    def _of_matrices(self, matrices: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return decomposed_parts(matrices, drop=self.drop, tolerance=self.tolerance)


def decomposed_parts(deltas: Sequence[torch.Tensor], *, drop: float, tolerance: float) -> list[torch.Tensor]:
    """What each expert contributes to DRM-H at weight 1; the merge is their sum.

    Args:
        deltas: K task vectors, [m, n] each, fp32 or fp64; finite.
        drop: Share of the K r n coordinates that is dropped: the smallest of all experts together once every row of
            V_i^T has length 1. With 0 all are kept, and elected and averaged like any others.
        tolerance: Singular values at or below this share of the largest are cut; r are left.

    Returns:
        K matrices [m, n].
    """
    width = deltas[0].shape[-1]
    u, sigma, vh = torch.linalg.svd(torch.cat(list(deltas), dim=-1), full_matrices=False)
    rank = int(torch.count_nonzero(sigma > tolerance * sigma[:1]))
    u, sigma, vh = u[:, :rank], sigma[:rank], vh[:rank]
    blocks = vh.unflatten(-1, (len(deltas), width))  # [r, K, n]
    if drop > 0:
        blocks = blocks.mul_(_largest_of_units(blocks, 1 - drop))
    coordinates = [sigma.unsqueeze(-1) * blocks[:, expert] for expert in range(len(deltas))]
    agreeing_shares(coordinates)
    return [u @ part for part in coordinates]


def _largest_of_units(blocks: torch.Tensor, density: float) -> torch.Tensor:
    """bool[r, K, n]: the largest entries of [r, K, n] once its rows have length 1; of equal ones the first expert's."""
    units = blocks.transpose(0, 1).contiguous()  # [K, r, n]
    lengths = torch.linalg.vector_norm(units, dim=-1, keepdim=True)
    units /= torch.where(lengths > 0, lengths, 1.0)  # a row that an expert has not is zero
    keep_largest(units.view(1, -1), rounded(density, units.numel()))
    return (units != 0).transpose(0, 1)
