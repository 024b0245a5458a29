"""The terms that read the truth, prediction by prediction: ``cross-entropy``, ``accuracy`` and ``exact-match``.

    CrossEntropy().per_example(outputs, batch, None)

A classifier's truth is its label, a token classifier's the label of every word, a language model's its own next token.
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
        return mean_per_example(cross_entropy_by_rows(outputs.logits, batch, self.name), batch)


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


class ExactMatch(ModelTerm):
    """1 where every prediction of an example is right, else 0; for a classifier, the accuracy.

    A language model is given the true tokens before each one that it predicts (teacher forcing). So this is whether
    greedy decoding would have written the whole completion, no more tolerant and no less: any other good answer is
    wrong.
    """

    name: ClassVar[str] = "exact-match"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})
    differentiable: ClassVar[bool] = False
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "share"
    paper: ClassVar[str] = "Rajpurkar et al. 2016, SQuAD, section 6.1, without its normalisation of answers"

    def per_example(self, outputs: Outputs, batch: Batch, teacher: TeacherBatch | None) -> Tensor:
        """See `ModelTerm.per_example`."""
        share = share_of_hits(outputs.logits, batch, targets(batch, self.name))
        return (share == 1.0).to(share.dtype)


def cross_entropy_by_rows(logits: Tensor, batch: Batch, term: str) -> Tensor:
    """Minus the log-probability of the truth of every row: [N].

    Args:
        logits: [B, C] or [B, T, V].
        batch: What they are for.
        term: Who asks.

    Raises:
        ValueError: The batch has no labels.
    """
    return by_rows(_cross_entropy, scored_logits(logits, batch), targets(batch, term))


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
