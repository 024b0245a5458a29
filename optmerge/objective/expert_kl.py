"""The term ``expert-kl``: how far the merged model's predictions are from the expert's, on the expert's own inputs.

    ExpertKL(ExpertKLConfig(top_k=None)).per_example(outputs, batch, teacher)

With the expert's k likeliest classes kept, both predictions are first coarsened to k + 1 classes (the k, and all others
together); the divergence of the coarse predictions is a lower bound of the exact one (data processing inequality), is
equal to it from k = C on, and is 0 for the expert itself. A temperature softens what is compared: all classes, or the
k + 1 coarse ones.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from optmerge.calibration.batches import Batch
from optmerge.config.objectives import ExpertKLConfig
from optmerge.objective.base import ModelTerm, Need, by_rows, mean_per_example, needed, scored_logits
from optmerge.objective.outputs import Outputs
from optmerge.objective.teacher import TeacherBatch, coarse_log_probs


class ExpertKL(ModelTerm):
    """T^2 KL(expert || merged), both at temperature T."""

    name: ClassVar[str] = "expert-kl"
    needs: ClassVar[frozenset[Need]] = frozenset({"teacher"})
    differentiable: ClassVar[bool] = True
    higher_is_better: ClassVar[bool] = False
    unit: ClassVar[str] = "nats"
    paper: ClassVar[str] = "Hinton et al. 2015, section 2; as Expert Merging's logit term"

    config: ExpertKLConfig

    def __init__(self, config: ExpertKLConfig) -> None:
        super().__init__(config)

    def per_example(self, outputs: Outputs, batch: Batch, teacher: TeacherBatch | None) -> Tensor:
        """See `ModelTerm.per_example`."""
        known = needed(teacher, self.name)
        rows = scored_logits(outputs.logits, batch)
        return mean_per_example(by_rows(self._divergence, rows, known.log_probs, known.indices), batch)

    def _divergence(self, logits: Tensor, expert: Tensor, kept: Tensor | None) -> Tensor:
        temperature = self.config.temperature
        log_p, log_q = expert.to(logits.dtype), coarse_log_probs(logits, kept)
        if temperature != 1.0:
            log_p = (log_p / temperature).log_softmax(-1)
            log_q = (log_q / temperature).log_softmax(-1)
        difference = torch.where(log_p == -float("inf"), 0.0, log_p - log_q)  # 0 log 0 = 0
        return (log_p.exp() * difference).sum(-1) * temperature**2  # Hinton et al. 2015, section 2
