"""What a merged model is judged by: terms per example, teachers' outputs, and their composition into one value."""

from optmerge.objective.agreement import Agreement
from optmerge.objective.base import ModelTerm
from optmerge.objective.coefficient import CoefficientTerm
from optmerge.objective.entropy import Entropy
from optmerge.objective.expert_kl import ExpertKL
from optmerge.objective.geometry import Geometry
from optmerge.objective.labelled import Accuracy, CrossEntropy
from optmerge.objective.metrics import report_metrics
from optmerge.objective.objective import Objective
from optmerge.objective.outputs import Outputs
from optmerge.objective.registry import COEFFICIENT_TERMS, TERMS, make_term, term_class
from optmerge.objective.teacher import TeacherBatch, TeacherOutputs
from optmerge.objective.whole import WholeModelTerm

__all__ = [
    "COEFFICIENT_TERMS",
    "TERMS",
    "Accuracy",
    "Agreement",
    "CoefficientTerm",
    "CrossEntropy",
    "Entropy",
    "ExpertKL",
    "Geometry",
    "ModelTerm",
    "Objective",
    "Outputs",
    "TeacherBatch",
    "TeacherOutputs",
    "WholeModelTerm",
    "make_term",
    "report_metrics",
    "term_class",
]
