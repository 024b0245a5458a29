"""What the report shows of every task beside the objective.

[term.name for term in report_metrics("sequence-classification", labelled=True)]
# ["accuracy", "cross-entropy", "agreement"]
"""

from __future__ import annotations

from optmerge.models.architecture import GENERATIVE, Kind
from optmerge.objective.agreement import Agreement
from optmerge.objective.base import ModelTerm
from optmerge.objective.f1 import F1
from optmerge.objective.labelled import Accuracy, CrossEntropy
from optmerge.objective.perplexity import Perplexity


def report_metrics(kind: Kind, labelled: bool) -> list[ModelTerm]:
    """What the report shows beside the objective, agreement always, and the rest where there are labels.

    These are accuracy and cross-entropy; perplexity too for language models, whose readers expect it, and F1 for token
    classifiers, most of whose tokens are of one class.

    Args:
        kind: What the experts are.
        labelled: Whether the report split has labels.
    """
    known: list[ModelTerm] = [Accuracy(), CrossEntropy()]
    if kind in GENERATIVE:
        known.append(Perplexity())
    if kind == "token-classification":
        known.append(F1())
    return [*(known if labelled else []), Agreement()]
