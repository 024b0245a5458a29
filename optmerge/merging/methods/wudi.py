"""WUDI-Merging (Cheng et al. 2025, "Whoever Started the Interference Should End It", equation 13).

Per linear layer, the merged task vector M minimises

    sum_i ||(M - tau_i) tau_i^T||_F^2 / ||tau_i||_F^2 .

It is RegMean's objective with tau_i^T tau_i in the place of the Gram matrix of the layer's inputs: the rows of a task
vector are sums of inputs, weighted by what the loss said of them. With A the task vectors divided by their norms and
stacked, G = A^T A, and M = S + D from a start S, the gradient by D is 2 (D G + R), where R is half of the one at S.
G and R are made once; K and the number of outputs are then no part of a step's cost. D is kept apart from S, so that
small steps are not rounded away.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch

from optmerge.config.methods import Embeddings, Others
from optmerge.merging.methods.base import Method, Models
from optmerge.merging.methods.descent import Adam
from optmerge.merging.methods.elementwise import Elementwise
from optmerge.merging.methods.linear_maps import by_matrix
from optmerge.merging.methods.matrixwise import plain_factor, routed


class Wudi(Method):
    """Linear maps by `descend` or `solve` from the sum of the task vectors; the rest by a plain rule.

    Args:
        weights: What the task vectors are multiplied by beforehand, one number per expert.
        solver: ``adam`` or ``exact``.
        steps: See `descend`.
        lr: See `descend`.
        tolerance: See `solve`.
        others: What vectors get: norms, biases, scalars.
        embeddings: What embeddings and heads get.
    """

    def __init__(
        self,
        weights: tuple[float, ...],
        *,
        solver: Literal["adam", "exact"],
        steps: int,
        lr: float,
        tolerance: float,
        others: Others,
        embeddings: Embeddings,
    ) -> None:
        super().__init__(weights)
        self.others = others
        self.embeddings = embeddings
        self._merge = partial(descend, steps=steps, lr=lr) if solver == "adam" else partial(solve, tolerance=tolerance)
        self._task_vectors = Elementwise(weights)

    def delta(self, models: Models, name: str) -> torch.Tensor:
        """See `Method.delta`."""
        kind = models.kind(name)
        rule = routed(kind, others=self.others, embeddings=self.embeddings)
        if rule != "matrix":
            return self._task_vectors.delta(models, name).mul_(plain_factor(rule, len(self.weights)))
        deltas = self._task_vectors.expert_deltas(models, name)
        for delta, weight in zip(deltas, self.weights, strict=True):
            delta.mul_(weight)
        return by_matrix(self._merge, deltas, kind)


def descend(task_vectors: Sequence[torch.Tensor], *, steps: int, lr: float) -> torch.Tensor:
    """Some steps of Adam from the sum of the task vectors.

    Args:
        task_vectors: K task vectors, [out, in] each, fp32 or fp64; finite. Those that are zero have no say.
        steps: How many.
        lr: Learning rate, in the unit of the weights.

    Returns:
        [out, in]
    """
    start = _total(task_vectors)
    guides = _unit_norm(task_vectors)
    doubled = _interference(start, task_vectors, guides).mul_(2)
    change, gradient = torch.zeros_like(start), torch.empty_like(start)
    adam = Adam(start, lr=lr)
    rows, inputs = guides.shape
    if inputs <= 2 * rows:
        gram = (guides.mT @ guides).mul_(2)
        for _ in range(steps):
            torch.addmm(doubled, change, gram, out=gradient)
            change += adam(gradient)
    else:
        product = start.new_empty(len(start), rows)
        for _ in range(steps):
            torch.mm(change, guides.mT, out=product)
            torch.addmm(doubled, product, guides, alpha=2, out=gradient)
            change += adam(gradient)
    return start.add_(change)


def solve(task_vectors: Sequence[torch.Tensor], *, tolerance: float) -> torch.Tensor:
    """The minimum: the smallest step -R G^+ from the sum of the task vectors.

    Where no task vector points, both the sum and the step are zero, so that the minimum does not depend on the start.

    Args:
        task_vectors: See `descend`.
        tolerance: Directions of the inputs whose singular value in the stacked task vectors is at or below this share
            of the largest are left as they are in the sum.

    Returns:
        [out, in] in the dtype of the task vectors; solved in fp64, for G squares the condition number.
    """
    exact = [task_vector.double() for task_vector in task_vectors]
    start = _total(exact)
    guides = _unit_norm(exact)
    tall = len(guides) > guides.shape[1]
    energies, vectors = torch.linalg.eigh(guides.mT @ guides if tall else guides @ guides.mT)
    kept = energies > max(tolerance**2, torch.finfo(torch.float64).eps) * energies[-1:]
    energies, vectors = energies[kept], vectors[:, kept]
    inputs = vectors if tall else (guides.mT @ vectors).div_(energies.sqrt())  # right singular vectors, [in, rank]
    step = (_interference(start, exact, guides) @ inputs).div_(energies) @ inputs.mT
    return start.sub_(step).to(task_vectors[0].dtype)


def _total(task_vectors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Their sum, in order."""
    total = task_vectors[0].clone(memory_format=torch.contiguous_format)
    for task_vector in task_vectors[1:]:
        total += task_vector
    return total


def _unit_norm(task_vectors: Sequence[torch.Tensor]) -> torch.Tensor:
    """A: the task vectors divided by their norms, one below the other, [K * out, in]; those that are zero stay so."""
    stacked = torch.stack(list(task_vectors))
    norms = torch.linalg.vector_norm(stacked, dim=(1, 2), keepdim=True)
    return stacked.div_(norms.masked_fill_(norms == 0, 1)).flatten(0, 1)


def _interference(start: torch.Tensor, task_vectors: Sequence[torch.Tensor], guides: torch.Tensor) -> torch.Tensor:
    """R = sum_i (start - tau_i) A_i^T A_i, [out, in]: half of the gradient at the start."""
    outputs, inputs = start.shape
    total = torch.zeros_like(start)
    for task_vector, guide in zip(task_vectors, guides.split(outputs), strict=True):
        disturbing = start - task_vector
        if inputs <= outputs:
            total.addmm_(disturbing, guide.mT @ guide)
        else:
            total.addmm_(disturbing @ guide.mT, guide)
    return total
