"""Methods that merge a matrix as a function of all task vectors at once, which is no sum of one part per expert.

    method = Jointly(weights, partial(iso_cts, common=0.8, tolerance=1e-6), others="mean", embeddings="matrix")
    method.delta(models, name)

The function sees matrices as [out, in], however they are stored, so that methods in which outputs and inputs play
different parts mean the same everywhere. Of one parameter all task vectors are held at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from optmerge.config.methods import Embeddings, Others
from optmerge.merging.methods.base import Method, Models, TensorKind
from optmerge.merging.methods.elementwise import Elementwise
from optmerge.merging.methods.matrices import as_matrices
from optmerge.merging.methods.matrixwise import plain_factor, routed

Merge = Callable[[Sequence[torch.Tensor]], torch.Tensor]
"""K task vectors [..., out, in] -> their merge, of the same shape."""


def oriented(delta: torch.Tensor, kind: TensorKind) -> torch.Tensor:
    """A task vector as [out, in] or as a stack of such, a convolution as [out, in * ...]."""
    matrices = as_matrices(delta, kind)
    return matrices.mT if kind.input_first else matrices


def stored(matrices: torch.Tensor, kind: TensorKind) -> torch.Tensor:
    """What `oriented` gave, in the parameter's layout; contiguous."""
    return (matrices.mT if kind.input_first else matrices).contiguous().reshape(kind.shape)


def one_by_one(merge: Merge) -> Merge:
    """A merge of matrices [out, in] as one of stacks too, whose matrices are merged one after the other."""

    def merged(matrices: Sequence[torch.Tensor]) -> torch.Tensor:
        if matrices[0].ndim == 2:
            return merge(matrices)
        return torch.stack([merge(each) for each in zip(*matrices, strict=True)])

    return merged


class Jointly(Method):
    """Matrices by a function of all weighted task vectors. The rest: mean, sum or base.

    Args:
        weights: One per expert; the task vectors are multiplied by them first.
        merge: What is done with matrices.
        others: What vectors get: norms, biases, scalars.
        embeddings: What embeddings and heads get.
    """

    def __init__(self, weights: tuple[float, ...], merge: Merge, *, others: Others, embeddings: Embeddings) -> None:
        super().__init__(weights)
        self.merge = merge
        self.others = others
        self.embeddings = embeddings
        self._task_vectors = Elementwise(weights)

    def delta(self, models: Models, name: str) -> torch.Tensor:
        """See `Method.delta`."""
        kind = models.kind(name)
        rule = routed(kind, others=self.others, embeddings=self.embeddings)
        if rule != "matrix":
            return self._task_vectors.delta(models, name).mul_(plain_factor(rule, len(self.weights)))
        deltas = self._task_vectors.expert_deltas(models, name)
        return self.merged([delta.mul_(weight) for delta, weight in zip(deltas, self.weights, strict=True)], kind)

    def merged(self, deltas: Sequence[torch.Tensor], kind: TensorKind) -> torch.Tensor:
        """The merge of a matrix's weighted task vectors, in the parameter's layout."""
        if not any(torch.count_nonzero(delta) for delta in deltas):
            return deltas[0]  # a tensor that no expert touched has nothing to decompose
        return stored(self.merge([oriented(delta, kind) for delta in deltas]), kind)
