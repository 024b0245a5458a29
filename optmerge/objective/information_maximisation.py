"""The term ``information-maximisation``: sure of every prediction, and not always of the same class.

    term = InformationMaximisation(InformationMaximisationConfig())
    term.finish(term.per_example(outputs, batch, None).mean(0))

Entropy alone is lowest where every input gets one and the same class. With the entropy of the mean prediction taken
away, that collapse gains nothing: what is left is minus the mutual information between inputs and predictions.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from optmerge.calibration.batches import Batch
from optmerge.config.objectives import InformationMaximisationConfig
from optmerge.objective.base import (
    ModelTerm,
    Need,
    example_of_rows,
    pieces_by_rows,
    precise,
    rows_at_once,
    rows_per_example,
    scored_logits,
)
from optmerge.objective.outputs import Outputs
from optmerge.objective.teacher import TeacherBatch


class InformationMaximisation(ModelTerm):
    """The mean of H(p) minus ``diversity`` times H(mean p), over all predictions p of a split.

    Between -log C (sure of one class each, all classes equally often) and log C. The predictions of a language model
    or a token classifier are those of its scored tokens; every example has the same say in the mean prediction, as it
    has in the mean entropy.
    """

    name: ClassVar[str] = "information-maximisation"
    needs: ClassVar[frozenset[Need]] = frozenset()
    differentiable: ClassVar[bool] = True
    higher_is_better: ClassVar[bool] = False
    unit: ClassVar[str] = "nats"
    paper: ClassVar[str] = "Liang et al. 2020, SHOT, equation 3"
    summary: bool = True

    config: InformationMaximisationConfig

    def __init__(self, config: InformationMaximisationConfig) -> None:
        super().__init__(config)

    def per_example(self, outputs: Outputs, batch: Batch, teacher: TeacherBatch | None) -> Tensor:
        """Each example's mean entropy and mean prediction, [B, 1 + C]; see `ModelTerm.per_example`."""
        rows = scored_logits(outputs.logits, batch)
        pieces = pieces_by_rows(_statistics, rows)
        examples = torch.split(example_of_rows(batch, rows), rows_at_once(rows.shape[-1]))
        # Summed up as they come, so that a vocabulary's probabilities are held per example and never per token.
        total = precise(rows[:0]).new_zeros(batch.size, 1 + rows.shape[-1])
        for example, piece in zip(examples, pieces, strict=True):
            if total.is_cuda:  # either is the one that adds in a fixed order there
                total.index_put_((example,), piece, accumulate=True)
            else:
                total.index_add_(0, example, piece)
        return total / rows_per_example(batch, total)[:, None]

    def finish(self, mean: Tensor) -> Tensor:
        """See `ModelTerm.finish`."""
        marginal = mean[1:]
        # Finite for a class that nothing predicts too, so that its slope is, and 0 times it is 0.
        log_marginal = marginal.clamp(min=torch.finfo(mean.dtype).tiny).log()
        return mean[0] + self.config.diversity * (marginal * log_marginal).sum()  # SHOT, eq. 3


def _statistics(logits: Tensor) -> Tensor:
    """Entropy and prediction of every row: [n, C] -> [n, 1 + C]."""
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    entropy = -(p * log_p.masked_fill(log_p == -float("inf"), 0.0)).sum(-1, keepdim=True)
    return torch.cat([entropy, p], -1)
