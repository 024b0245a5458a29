"""The terms by name: those that a search file can name (``config.objectives.TERM_CONFIGS``), and report-only ones."""

from __future__ import annotations

from optmerge.objective.agreement import Agreement
from optmerge.objective.base import ModelTerm
from optmerge.objective.entropy import Entropy
from optmerge.objective.expert_kl import ExpertKL
from optmerge.objective.labelled import Accuracy, CrossEntropy

TERMS: dict[str, type[ModelTerm]] = {
    "entropy": Entropy,
    "expert-kl": ExpertKL,
    "cross-entropy": CrossEntropy,
    "accuracy": Accuracy,
    "agreement": Agreement,
}
REPORT_ONLY: tuple[str, ...] = ("agreement",)
