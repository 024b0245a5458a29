"""The term ``expert-kl``: how far the merged model's predictions are from the expert's, on the expert's own inputs.

    ExpertKL(ExpertKLConfig(top_k=None)).per_example(outputs, batch, teacher)

Of a large vocabulary the expert's k likeliest classes are compared one by one, all others together, and what happens
among those others by classes drawn from them, see `optmerge.objective.kept`: an unbiased estimate of the whole
divergence, and 0 for the expert itself. Without draws it is that of the k + 1 coarse classes, a lower bound (data
processing inequality). A temperature softens what is compared.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from optmerge.calibration.batches import Batch
from optmerge.config.objectives import ExpertKLConfig
from optmerge.objective.base import ModelTerm, Need, by_rows, mean_per_example, needed, scored_logits
from optmerge.objective.kept import coarse_log_probs, log_ratios
from optmerge.objective.outputs import Outputs
from optmerge.objective.teacher import TeacherBatch


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
        view = needed(teacher, self.name).at(self.config.temperature)
        rows = scored_logits(outputs.logits, batch)
        drawn = (view.drawn, view.drawn_log_probs, view.log_weights)
        return mean_per_example(by_rows(self._divergence, rows, view.log_probs, view.indices, *drawn), batch)

    def _divergence(
        self,
        logits: Tensor,
        expert: Tensor,
        kept: Tensor | None,
        drawn: Tensor | None,
        drawn_p: Tensor | None,
        weights: Tensor | None,
    ) -> Tensor:
        temperature = self.config.temperature
        every = coarse_log_probs(logits / temperature, kept, drawn)
        columns = expert.shape[-1]
        log_p, log_q = expert.to(logits.dtype), every[:, :columns]
        difference = torch.where(log_p == -float("inf"), 0.0, log_p - log_q)  # 0 log 0 = 0
        value = (log_p.exp() * difference).sum(-1)
        if drawn_p is not None and weights is not None:
            ratio, base, weight = log_ratios(every[:, columns - 1 :], drawn_p, log_p[:, -1:], weights)
            # f = -log. Adding u / u0 - 1 would make each summand positive, and its mean far less sure: u has no bound.
            value = value + (weight * (base - ratio)).mean(-1)
        return value * temperature**2  # Hinton et al. 2015, section 2
