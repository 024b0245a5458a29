"""The terms that read the truth: ``cross-entropy`` and ``accuracy``.

    CrossEntropy().per_example(outputs, batch, None)

A classifier's truth is ``batch.labels``; a language model's is its own next token, wherever the batch scores one.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from optmerge.calibration.batches import Batch
from optmerge.objective.base import ModelTerm, Need, by_rows, mean_per_example, scored_logits, targets
from optmerge.objective.outputs import Outputs
from optmerge.objective.teacher import TeacherBatch


class CrossEntropy(ModelTerm):
    """Minus the log-probability of the label (of the completion's tokens, for language models)."""

    name: ClassVar[str] = "cross-entropy"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})
    differentiable: ClassVar[bool] = True
    higher_is_better: ClassVar[bool] = False
    unit: ClassVar[str] = "nats"
    paper: ClassVar[str] = "maximum likelihood; the loss of Chen et al. 2025, FW-Merging"

    def per_example(self, outputs: Outputs, batch: Batch, teacher: TeacherBatch | None) -> Tensor:
        """See `ModelTerm.per_example`."""
        values = by_rows(_cross_entropy, scored_logits(outputs.logits, batch), targets(batch, self.name))
        return mean_per_example(values, batch)


class Accuracy(ModelTerm):
    """1 where the likeliest class is the label, else 0 (share of right tokens, for language models)."""

    name: ClassVar[str] = "accuracy"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})
    differentiable: ClassVar[bool] = False
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "share"
    paper: ClassVar[str] = "the task score of Akiba et al. 2025, Evolutionary Optimization of Model Merging Recipes"

    def per_example(self, outputs: Outputs, batch: Batch, teacher: TeacherBatch | None) -> Tensor:
        """See `ModelTerm.per_example`."""
        return share_of_hits(outputs.logits, batch, targets(batch, self.name))


def share_of_hits(logits: Tensor, batch: Batch, wanted: Tensor) -> Tensor:
    """Per example, the share of its rows whose likeliest class is the wanted one: [B].

    Args:
        logits: [B, C] or [B, T, V].
        batch: What they are for.
        wanted: int64[N], one class per row.
    """

    def hit(rows: Tensor, classes: Tensor) -> Tensor:
        return (rows.argmax(-1) == classes).to(rows.dtype)

    return mean_per_example(by_rows(hit, scored_logits(logits.detach(), batch), wanted), batch)


def _cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    return F.cross_entropy(logits, classes, reduction="none")
