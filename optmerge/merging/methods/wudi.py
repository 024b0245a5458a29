"""WUDI-Merging (Cheng et al. 2025) and its second version, OptMerge (Wei et al. 2025).

    descend(interference([tau_1, tau_2]), steps=300, optimiser=partial(Adam, lr=1e-5))      # as published
    minimum(interference([tau_1, tau_2]), tolerance=1e-6)

Per linear layer, the merged task vector M minimises

    sum_i ||(M - T_i) A_i^T||_F^2

where in the first version T_i is the task vector tau_i, and A_i is tau_i / ||tau_i||_F. It is RegMean's objective with
tau_i^T tau_i in the place of the Gram matrix of the layer's inputs: the rows of a task vector are sums of inputs,
weighted by what the loss said of them. With A the A_i one below the other, G = A^T A, and M = S + D from a start S, the
gradient by D is 2 (D G + R), where R is half of the one at S. G and R are made once; the number of experts is then no
part of a step's cost. D is kept apart from S, so that small steps are not rounded away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from optmerge.merging.methods.descent import Adam, Momentum
from optmerge.merging.methods.spectrum import Svd, cut_svd

Optimiser = Callable[[torch.Tensor], Adam | Momentum]
"""From a tensor of the parameters' shape to what makes their steps."""


class Problem(NamedTuple):
    """What is minimised for one matrix, see the module.

    Attributes:
        start: S, [out, in], a tensor of its own.
        targets: The K T_i, [out, in] each.
        guides: A, [K * rows, in].
    """

    start: torch.Tensor
    targets: Sequence[torch.Tensor]
    guides: torch.Tensor


def interference(task_vectors: Sequence[torch.Tensor]) -> Problem:
    """The first version: from the sum of the task vectors, each the target on the inputs that it points at.

    Args:
        task_vectors: K task vectors, [out, in] each, fp32 or fp64; finite. Those that are zero have no say.
    """
    stacked = torch.stack(list(task_vectors))
    norms = torch.linalg.vector_norm(stacked, dim=(1, 2), keepdim=True)
    return Problem(_total(task_vectors), task_vectors, stacked.div_(_divisor(norms)).flatten(0, 1))


def low_rank_interference(
    task_vectors: Sequence[torch.Tensor], *, ranks: float, centred: bool, tolerance: float
) -> Problem:
    """The second version: guides and targets without their smaller singular values, which are noise.

    A_i are the leading components of tau_i, divided by the norm of the whole.

    Args:
        task_vectors: See `interference`.
        ranks: Each expert keeps this share of min(out, in) / K components, at least one.
        centred: For experts whose every weight was tuned: targets are the mean plus the leading components of what each
            expert has beside it, and the start is the sum. Else, for adapters (LoRA): the targets are the leading
            components of each, and the start is the mean.
        tolerance: Singular values at or below this share of the largest are cut.
    """
    count, rank = len(task_vectors), min(task_vectors[0].shape)
    kept = min(rank, max(1, int(rank * ranks / count)))
    total = _total(task_vectors)
    mean = total / count
    targets, guides = [], []
    for task_vector in task_vectors:
        u, sigma, vh = _leading(task_vector, kept, tolerance)
        # The left singular vectors change no norm of a product with A_i^T.
        guides.append(sigma[:, None] * vh / _divisor(torch.linalg.vector_norm(task_vector)))
        if centred:
            u, sigma, vh = _leading(task_vector - mean, kept, tolerance)
        target = (u * sigma) @ vh
        targets.append(target.add_(mean) if centred else target)
    return Problem(total if centred else mean, targets, torch.cat(guides))


def descend(problem: Problem, *, steps: int, optimiser: Optimiser) -> torch.Tensor:
    """Some steps of an optimiser from the start, [out, in]; the problem is used up."""
    start, guides = problem.start, problem.guides
    doubled = _pull(problem).mul_(2)
    change, gradient = torch.zeros_like(start), torch.empty_like(start)
    step = optimiser(start)
    rows, inputs = guides.shape
    if inputs <= 2 * rows:
        gram = (guides.mT @ guides).mul_(2)
        for _ in range(steps):
            torch.addmm(doubled, change, gram, out=gradient)
            change += step(gradient)
    else:
        product = start.new_empty(len(start), rows)
        for _ in range(steps):
            torch.mm(change, guides.mT, out=product)
            torch.addmm(doubled, product, guides, alpha=2, out=gradient)
            change += step(gradient)
    return start.add_(change)


def minimum(problem: Problem, *, tolerance: float) -> torch.Tensor:
    """The minimum that is nearest to the start, S - R G^+.

    Where no guide points, R is zero, and the start is kept.

    Args:
        problem: In fp64 better than in fp32: G squares the condition number, and is decomposed in fp64.
        tolerance: Directions of the inputs whose singular value in A is at or below this share of the largest are left
            as they are in the start.

    Returns:
        [out, in], in the dtype of the start.
    """
    start, targets, guides = problem
    exact = Problem(start.double(), targets, guides.double())  # each target is cast where it is subtracted
    guides = exact.guides
    tall = len(guides) > guides.shape[1]
    energies, vectors = torch.linalg.eigh(guides.mT @ guides if tall else guides @ guides.mT)
    kept = energies > max(tolerance**2, torch.finfo(torch.float64).eps) * energies[-1:]
    energies, vectors = energies[kept], vectors[:, kept]
    inputs = vectors if tall else (guides.mT @ vectors).div_(energies.sqrt())  # right singular vectors, [in, rank]
    step = (_pull(exact) @ inputs).div_(energies) @ inputs.mT
    return exact.start.sub(step).to(start.dtype)


def _total(task_vectors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Their sum, in order."""
    total = task_vectors[0].clone(memory_format=torch.contiguous_format)
    for task_vector in task_vectors[1:]:
        total += task_vector
    return total


def _divisor(norm: torch.Tensor) -> torch.Tensor:
    """1 where the norm is zero: what it divides is zero too."""
    return norm.masked_fill(norm == 0, 1)


def _leading(matrix: torch.Tensor, kept: int, tolerance: float) -> Svd:
    """The ``kept`` largest singular values."""
    u, sigma, vh = cut_svd(matrix, tolerance=tolerance)
    return Svd(u[:, :kept], sigma[:kept], vh[:kept])


def _pull(problem: Problem) -> torch.Tensor:
    """R = sum_i (S - T_i) A_i^T A_i, [out, in]: half of the gradient at the start."""
    start, targets, guides = problem
    total = torch.zeros_like(start)
    for target, guide in zip(targets, guides.chunk(len(targets)), strict=True):
        disturbing = start - target
        if guide.shape[1] <= len(guide):
            total.addmm_(disturbing, guide.mT @ guide)
        else:
            total.addmm_(disturbing @ guide.mT, guide)
    return total
