"""The term ``entropy``: how unsure the merged model is, with no reference to what is right.

    Entropy(EntropyConfig()).per_example(outputs, batch, None)

The preset objectives/entropy.yaml says what can go wrong with it.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from optmerge.calibration.batches import Batch
from optmerge.objective.base import ModelTerm, Need, by_rows, mean_per_example, scored_logits
from optmerge.objective.outputs import Outputs
from optmerge.objective.teacher import TeacherBatch


class Entropy(ModelTerm):
    """Shannon entropy of the prediction, H(softmax(z)).

    It can fall while the model gets worse: nothing says which class it should be sure of.
    """

    name: ClassVar[str] = "entropy"
    needs: ClassVar[frozenset[Need]] = frozenset()
    differentiable: ClassVar[bool] = True
    higher_is_better: ClassVar[bool] = False
    unit: ClassVar[str] = "nats"
    paper: ClassVar[str] = "Yang et al. 2024, AdaMerging, equation 4"

    def per_example(self, outputs: Outputs, batch: Batch, teacher: TeacherBatch | None) -> Tensor:
        """See `ModelTerm.per_example`."""
        return mean_per_example(by_rows(_entropy, scored_logits(outputs.logits, batch)), batch)


def _entropy(logits: Tensor) -> Tensor:
    log_p = logits.log_softmax(-1)
    # An impossible class (-inf) adds 0 log 0 = 0, and must not make the gradient NaN.
    return -(log_p.exp() * log_p.masked_fill(log_p == -float("inf"), 0.0)).sum(-1)  # AdaMerging, eq. 4
