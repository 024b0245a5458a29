"""The term ``f1``: precision and recall of every class alike, whatever the classes' sizes.

term = F1()
term.finish(term.per_example(outputs, batch, None).mean(0))
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from optmerge.calibration.batches import Batch
from optmerge.objective.base import ModelTerm, Need, example_of_rows, precise, scored_logits, targets
from optmerge.objective.outputs import Outputs
from optmerge.objective.teacher import TeacherBatch


class F1(ModelTerm):
    """Macro F1: the plain mean over classes of F1 = 2 TP / (2 TP + FP + FN).

    The classes are those of the head that are right or predicted somewhere in the split; one that never occurs has no
    F1. Predictions of a token classifier are counted token by token, its class for "outside" included: this is not
    the F1 of whole entities.
    """

    name: ClassVar[str] = "f1"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})
    differentiable: ClassVar[bool] = False
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "share"
    paper: ClassVar[str] = "van Rijsbergen 1979, Information Retrieval, chapter 7, averaged over classes"
    summary: bool = True

    def per_example(self, outputs: Outputs, batch: Batch, teacher: TeacherBatch | None) -> Tensor:
        """Hits, predictions and truths of every class in an example, [B, 3 C]; see `ModelTerm.per_example`."""
        rows = scored_logits(outputs.logits.detach(), batch)
        truth, choice = targets(batch, self.name), rows.argmax(-1)
        classes = rows.shape[-1]
        counts = precise(rows[:0]).new_zeros(batch.size * 3 * classes)
        first = example_of_rows(batch, rows) * (3 * classes)
        one = torch.ones_like(truth, dtype=counts.dtype)
        # Whole numbers: their sum is exact in any order.
        counts.scatter_add_(0, first + truth, (choice == truth).to(counts.dtype))
        counts.scatter_add_(0, first + classes + choice, one)
        counts.scatter_add_(0, first + 2 * classes + truth, one)
        return counts.view(batch.size, 3 * classes)

    def finish(self, mean: Tensor) -> Tensor:
        """See `ModelTerm.finish`."""
        hits, predicted, true = mean.view(3, -1)
        occurring = predicted + true
        occurs = occurring > 0
        score = torch.where(occurs, 2 * hits / torch.where(occurs, occurring, 1.0), 0.0)
        macro: Tensor = score.sum() / occurs.sum()
        return macro
