"""The term ``pseudo-label``: the expert's choice, taken as if it were the label.

term = PseudoLabel(PseudoLabelConfig(filter="none"))
term.per_example(outputs, batch, teacher)
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from optmerge.calibration.batches import Batch
from optmerge.config.objectives import PseudoLabelConfig
from optmerge.objective.base import ModelTerm, Need, by_rows, mean_per_example, needed, scored_logits
from optmerge.objective.outputs import Outputs
from optmerge.objective.teacher import TeacherBatch


class PseudoLabel(ModelTerm):
    """Cross-entropy of the merged model with the expert's likeliest class, over the predictions that the filter keeps.

    The filter ``agreement`` keeps a prediction where both choose the same class, or where they do not and the expert
    is at least as confident; the value is the mean over what is kept, and 0 where nothing is. What is kept follows
    from the merged model, but no gradient flows through the choice.
    """

    name: ClassVar[str] = "pseudo-label"
    needs: ClassVar[frozenset[Need]] = frozenset({"teacher"})
    differentiable: ClassVar[bool] = True
    higher_is_better: ClassVar[bool] = False
    unit: ClassVar[str] = "nats"
    paper: ClassVar[str] = "SyMerge, arXiv 2412.19098 (first called Model Tinting)"

    config: PseudoLabelConfig

    def __init__(self, config: PseudoLabelConfig) -> None:
        super().__init__(config)
        self.summary = config.filter == "agreement"

    def per_example(self, outputs: Outputs, batch: Batch, teacher: TeacherBatch | None) -> Tensor:
        """[B] without a filter; else what is kept of an example's loss, and of the example, [B, 2]."""
        known = needed(teacher, self.name)
        rows = scored_logits(outputs.logits, batch)
        if not self.summary:
            return mean_per_example(by_rows(_loss, rows, known.choice), batch)
        # The last of the kept classes' columns, where there are any left over, is no class.
        classes = known.log_probs if known.indices is None else known.log_probs[:, :-1]
        return mean_per_example(by_rows(_filtered, rows, known.choice, classes.amax(-1)), batch)

    def finish(self, mean: Tensor) -> Tensor:
        """See `ModelTerm.finish`."""
        if not self.summary:
            return mean
        loss, kept = mean[0], mean[1]
        return torch.where(kept > 0, loss / kept.clamp(min=torch.finfo(mean.dtype).tiny), 0.0)


def _loss(logits: Tensor, choice: Tensor) -> Tensor:
    return -logits.log_softmax(-1).gather(-1, choice[:, None]).squeeze(-1)


def _filtered(logits: Tensor, choice: Tensor, confidence: Tensor) -> Tensor:
    """Loss where a row is kept, and whether it is: [n, 2]."""
    best = logits.detach().log_softmax(-1).max(-1)
    keep = (best.indices == choice) | (confidence.to(logits.dtype) >= best.values)
    return torch.stack([torch.where(keep, _loss(logits, choice), 0.0), keep.to(logits.dtype)], -1)
