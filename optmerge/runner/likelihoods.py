"""Scalars to go back from, for statistics of gradients: what a model predicts on a batch, and what is true of it.

    scalars = predicted(logits, batch, generator)       # their squared gradients add up to the Fisher information
    scalars = true_loss(logits, batch)                  # one, of labels

Predictions are the model's own, and no label is looked at: with few classes every one of them counts by its
probability, and otherwise one is drawn. Its expectation is the same, example by example, and over the many predictions
of one text too, for those that are drawn independently have uncorrelated gradients.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor
from torch.nn import functional as F

from optmerge.calibration.batches import Batch
from optmerge.objective.base import by_rows, mean_per_example, precise, scored_logits
from optmerge.objective.labelled import cross_entropy_by_rows

CLASSES = 16
"""With more of them, or with more than one prediction to an example, a class is drawn."""


def predicted(logits: Tensor, batch: Batch, generator: torch.Generator) -> list[Tensor]:
    """sqrt(p(y|x)) log p(y|x) for every class y, or log p(y|x) for one that is drawn; summed over predictions.

    Args:
        logits: [B, C] or [B, T, C].
        batch: What they are for.
        generator: On the CPU.
    """
    rows = scored_logits(logits, batch)
    if count_scalars(rows.shape[-1], one_each=batch.rows is None) > 1:
        log_probs = torch.log_softmax(precise(rows), -1)
        return list((log_probs * log_probs.detach().mul(0.5).exp()).sum(0))
    uniform = torch.rand(len(rows), generator=generator, dtype=torch.float32).to(rows.device)
    drawn = by_rows(draw, rows.detach(), uniform)
    return [-by_rows(_cross_entropy, rows, drawn).sum()]


def count_scalars(classes: int, *, one_each: bool) -> int:
    """How often `predicted` goes back.

    Args:
        classes: C.
        one_each: Whether an example has one prediction.
    """
    return classes if one_each and classes <= CLASSES else 1


def true_loss(logits: Tensor, batch: Batch) -> list[Tensor]:
    """Minus the log-probability of the labels, in the mean over an example's predictions and summed over examples.

    Raises:
        ValueError: The batch has no labels.
    """
    return [mean_per_example(cross_entropy_by_rows(logits, batch, "saliency"), batch).sum()]


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """int64[N]: the class at which the summed probabilities of a row pass a number.

    Args:
        logits: [N, C].
        uniform: [N], 0 to 1, the latter not among them.
    """
    reached = torch.softmax(logits, -1).cumsum(-1)
    wanted = uniform.to(reached.dtype)[:, None] * reached[:, -1:]
    return torch.searchsorted(reached, wanted, right=True).squeeze(1).clamp_(max=logits.shape[-1] - 1)


def generator_for(seed: int, expert: str) -> torch.Generator:
    """What draws for one expert; always the same numbers."""
    digest = hashlib.sha256(f"{seed}/{expert}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def _cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    return F.cross_entropy(logits, classes, reduction="none")
