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
from torch.nn.functional import softplus

from optmerge.calibration.batches import Batch
from optmerge.config.objectives import JensenShannonConfig
from optmerge.objective.base import ModelTerm, Need, by_rows, mean_per_example, needed, scored_logits
from optmerge.objective.kept import coarse_log_probs, log_ratios
from optmerge.objective.outputs import Outputs
from optmerge.objective.teacher import TeacherBatch

_FARTHEST = 80.0  # a log ratio beyond this: its exponential is nearly all that fp32 holds, its share of JS next to none
_IMPOSSIBLE = -1e4  # stands for log 0: its exponential is 0 in every precision, and differences of two stay finite


class JensenShannon(ModelTerm):
    """JS(p, q) = 1/2 KL(p || m) + 1/2 KL(q || m) with m = (p + q) / 2, of expert p and merged model q; at most log 2.

    Classes that are not kept of the expert count as for ``expert-kl``: as one, and by those drawn from among them.
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
        view = needed(teacher, self.name).at(1.0)
        rows = scored_logits(outputs.logits, batch)
        drawn = (view.drawn, view.drawn_log_probs, view.log_weights)
        return mean_per_example(by_rows(_divergence, rows, view.log_probs, view.indices, *drawn), batch)


def _divergence(
    logits: Tensor,
    expert: Tensor,
    kept: Tensor | None,
    drawn: Tensor | None,
    drawn_p: Tensor | None,
    weights: Tensor | None,
) -> Tensor:
    every = coarse_log_probs(logits, kept, drawn)
    columns = expert.shape[-1]
    log_p = expert.to(logits.dtype).clamp(min=_IMPOSSIBLE)
    log_q = every[:, :columns].clamp(min=_IMPOSSIBLE)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    value = 0.5 * (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(-1)
    if drawn_p is not None and weights is not None:
        ratio, base, weight = log_ratios(every[:, columns - 1 :], drawn_p, expert[:, -1:].to(logits.dtype), weights)
        ratio, base = ratio.clamp(max=_FARTHEST), base.clamp(max=_FARTHEST)
        # 2 f(u) = u log(2u / (1 + u)) - log((1 + u) / 2), less its tangent at u0: by convexity nothing is below 0.
        one, other = softplus(ratio), softplus(base)
        apart = ratio.exp() * ((ratio - one) - (base - other)) - (one - other)
        value = value + 0.5 * (weight * apart).mean(-1)
    return value
