"""The term ``perplexity``: among how many equally likely tokens the model might as well be choosing.

term = Perplexity(PerplexityConfig())
term.finish(term.per_example(outputs, batch, None).mean(0))
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from optmerge.calibration.batches import Batch
from optmerge.objective.base import ModelTerm, Need, mean_per_example, rows_per_example
from optmerge.objective.labelled import cross_entropy_by_rows
from optmerge.objective.outputs import Outputs
from optmerge.objective.teacher import TeacherBatch


class Perplexity(ModelTerm):
    """The exponential of the mean cross-entropy over all scored tokens of a split (or over a classifier's examples).

    Unlike in ``cross-entropy``, a long completion weighs more than a short one. The order of two models can differ from
    that by what they generate, and values of different tokenizers cannot be compared.
    """

    name: ClassVar[str] = "perplexity"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels"})
    differentiable: ClassVar[bool] = True
    higher_is_better: ClassVar[bool] = False
    unit: ClassVar[str] = "classes"
    paper: ClassVar[str] = "Jelinek et al. 1977, Perplexity: a Measure of the Difficulty of Speech Recognition Tasks"
    summary: bool = True

    def per_example(self, outputs: Outputs, batch: Batch, teacher: TeacherBatch | None) -> Tensor:
        """An example's summed loss and number of predictions, [B, 2]; see `ModelTerm.per_example`."""
        loss = mean_per_example(cross_entropy_by_rows(outputs.logits, batch, self.name), batch)
        count = rows_per_example(batch, loss)
        return torch.stack([loss * count, count], -1)

    def finish(self, mean: Tensor) -> Tensor:
        """See `ModelTerm.finish`."""
        return (mean[0] / mean[1]).exp()
