"""The term ``agreement``: how often the merged model and the task's expert choose the same class.

    Agreement().per_example(outputs, batch, teacher)

It is the report's metric where there are no labels, and named so.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from optmerge.calibration.batches import Batch
from optmerge.objective.base import ModelTerm, Need, needed
from optmerge.objective.labelled import share_of_hits
from optmerge.objective.outputs import Outputs
from optmerge.objective.teacher import TeacherBatch


class Agreement(ModelTerm):
    """1 where merged model and expert have the same likeliest class, else 0 (share of tokens, for language models)."""

    name: ClassVar[str] = "agreement"
    needs: ClassVar[frozenset[Need]] = frozenset({"teacher"})
    differentiable: ClassVar[bool] = False
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "share"
    paper: ClassVar[str] = "none: the 0/1 version of expert-kl"

    def per_example(self, outputs: Outputs, batch: Batch, teacher: TeacherBatch | None) -> Tensor:
        """See `ModelTerm.per_example`."""
        return share_of_hits(outputs.logits, batch, needed(teacher, self.name).choice)
