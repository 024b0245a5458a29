"""The term ``jensen-shannon``: how far the merged model's predictions are from the expert's, by a bounded measure.

    JensenShannon(JensenShannonConfig()).per_example(outputs, batch, teacher)

Where the expert is sure and the merged model is sure of something else, the KL divergence grows without bound and one
such example can outweigh a hundred; here it counts log 2 at most.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from optmerge.calibration.batches import Batch
from optmerge.config.objectives import JensenShannonConfig
from optmerge.objective.base import ModelTerm, Need, by_rows, mean_per_example, needed, scored_logits
from optmerge.objective.outputs import Outputs
from optmerge.objective.teacher import TeacherBatch, coarse_log_probs

_IMPOSSIBLE = -1e4  # stands for log 0: its exponential is 0 in every precision, and differences of two stay finite


class JensenShannon(ModelTerm):
    """JS(p, q) = 1/2 KL(p || m) + 1/2 KL(q || m) with m = (p + q) / 2, of expert p and merged model q; at most log 2.

    Classes that are not kept of the expert count as one, as for ``expert-kl``, which makes the value no larger.
    """

    name: ClassVar[str] = "jensen-shannon"
    needs: ClassVar[frozenset[Need]] = frozenset({"teacher"})
    differentiable: ClassVar[bool] = True
    higher_is_better: ClassVar[bool] = False
    unit: ClassVar[str] = "nats"
    paper: ClassVar[str] = "Lin 1991, Divergence Measures Based on the Shannon Entropy, section IV"

    config: JensenShannonConfig

    def __init__(self, config: JensenShannonConfig) -> None:
        super().__init__(config)

    def per_example(self, outputs: Outputs, batch: Batch, teacher: TeacherBatch | None) -> Tensor:
        """See `ModelTerm.per_example`."""
        known = needed(teacher, self.name)
        rows = scored_logits(outputs.logits, batch)
        return mean_per_example(by_rows(_divergence, rows, known.log_probs, known.indices), batch)


def _divergence(logits: Tensor, expert: Tensor, kept: Tensor | None) -> Tensor:
    log_p = expert.to(logits.dtype).clamp(min=_IMPOSSIBLE)
    log_q = coarse_log_probs(logits, kept).clamp(min=_IMPOSSIBLE)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return 0.5 * (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(-1)
