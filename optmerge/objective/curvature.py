"""The metric of a term: what its Gauss-Newton matrix is made of, beside the derivatives of the model's outputs.

    metric = metric_of(term, outputs, batch, teacher)       # at the point where the matrix is wanted
    slopes = (metric.features(moved) - metric.features(outputs)) / h       # [R, M], along one variable
    entry = (metric.weights * slopes * other_slopes).sum()                 # of the sum over the batch's examples

The generalised Gauss-Newton matrix J' H J (Schraudolph 2002; Martens 2014, section 5) takes the Hessian H of a convex
loss by the outputs, and the outputs' Jacobian J. For -sum_c p_c log q_c with q the softmax of the outputs, H is
diag(q) - q q' whatever p is, so that along two variables

    J_i' H J_j = sum_c q_c (d log q_c / d i) (d log q_c / d j),

the Fisher metric of q: sums of products of *features'* derivatives, with weights, which is the form kept here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from optmerge.calibration.batches import Batch
from optmerge.objective.base import ModelTerm, by_rows, rows_per_example, scored_logits
from optmerge.objective.expert_kl import ExpertKL
from optmerge.objective.jensen_shannon import JensenShannon
from optmerge.objective.labelled import CrossEntropy
from optmerge.objective.outputs import Outputs
from optmerge.objective.pseudo_label import PseudoLabel
from optmerge.objective.teacher import TeacherBatch

MOST_CLASSES = 1024  # of a larger head only the model's `LIKELIEST` classes are looked at
LIKELIEST = 128
JENSEN_SHANNON = 0.25  # JS(p, q) has p / (2 q (p + q)) for second derivative by q: 1 / (4 q) where p = q
_LEAST = 1e-12  # below this a cost is 0 but for rounding, and its root has no derivative


@dataclass(frozen=True, eq=False)
class Metric:
    """Weights [R, M], not negative, and what makes the features [R, M] of the model's outputs for the same batch.

    R rows are predictions, or examples; the matrix of the *sum* over the batch's examples is the sum over all entries.
    """

    weights: Tensor
    features: Callable[[Outputs], Tensor]


def metric_of(term: ModelTerm, outputs: Outputs, batch: Batch, teacher: TeacherBatch | None) -> Metric:
    """The metric of a term at these outputs.

    Of ``expert-kl``, ``cross-entropy`` and ``pseudo-label`` it is the softmax's, of ``jensen-shannon`` a quarter of it,
    which is exact where merged model and expert agree; of every other term `root_metric`.

    Args:
        term: No summary term.
        outputs: Of the batch, at the point where the matrix is wanted.
        batch: On the outputs' device.
        teacher: The expert's outputs, where the term needs them.
    """
    if isinstance(term, CrossEntropy | PseudoLabel):
        return softmax_metric(outputs, batch)
    if isinstance(term, ExpertKL):
        return softmax_metric(outputs, batch, temperature=term.config.temperature)
    if isinstance(term, JensenShannon):
        return softmax_metric(outputs, batch, factor=JENSEN_SHANNON)
    return root_metric(term, outputs, batch, teacher)


def softmax_metric(outputs: Outputs, batch: Batch, *, temperature: float = 1.0, factor: float = 1.0) -> Metric:
    """The Fisher metric of the prediction: q for weights, log q for features.

    Of a head with more than `MOST_CLASSES` the sum is over the classes that are likeliest here, a lower bound.

    Args:
        outputs: Of the batch, at the point where the matrix is wanted.
        batch: On the outputs' device.
        temperature: Softens q; the loss is multiplied by its square.
        factor: Of all weights.
    """
    base = scored_logits(outputs.logits.detach(), batch)
    kept = base.topk(LIKELIEST, -1).indices if base.shape[-1] > MOST_CLASSES else None

    def log_probs(logits: Tensor, classes: Tensor | None) -> Tensor:
        every = (logits / temperature).log_softmax(-1)
        return every if classes is None else every.gather(-1, classes)

    weights = by_rows(log_probs, base, kept).exp() * (factor * temperature**2)
    if batch.rows is not None and batch.scored is not None:  # an example's loss is the mean over its rows
        counts = rows_per_example(batch, weights)
        weights = weights / counts.index_select(0, batch.rows // batch.scored.shape[1])[:, None]
    return Metric(weights, lambda moved: by_rows(log_probs, scored_logits(moved.logits.detach(), batch), kept))


def root_metric(term: ModelTerm, outputs: Outputs, batch: Batch, teacher: TeacherBatch | None) -> Metric:
    """The metric of any term without a closed form: each example's cost read as half a squared residual.

    With r = sqrt(2 f) the Gauss-Newton matrix of f = r^2 / 2 is (grad r)(grad r)', that is (grad f)(grad f)' / (2 f):
    the outer product of the example's gradient. Where f is a sum of squares this is a lower bound of its matrix
    (Cauchy-Schwarz). A cost below 0 counts as 0.
    """

    def roots(moved: Outputs) -> Tensor:
        value = term.per_example(moved, batch, teacher).detach()
        cost = 1.0 - value if term.higher_is_better else value
        return (2.0 * cost.clamp(min=_LEAST)).sqrt()[:, None]

    return Metric(torch.ones(batch.size, 1, device=outputs.logits.device), roots)
