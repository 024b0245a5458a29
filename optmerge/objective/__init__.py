"""What a merged model is judged by: terms per example, teachers' outputs, and their composition into one value."""

from optmerge.objective.agreement import Agreement
from optmerge.objective.base import ModelTerm
from optmerge.objective.entropy import Entropy
from optmerge.objective.expert_kl import ExpertKL
from optmerge.objective.labelled import Accuracy, CrossEntropy
from optmerge.objective.objective import Objective, report_metrics
from optmerge.objective.outputs import Outputs
from optmerge.objective.registry import TERMS
from optmerge.objective.teacher import TeacherBatch, TeacherOutputs

__all__ = [
    "TERMS",
    "Accuracy",
    "Agreement",
    "CrossEntropy",
    "Entropy",
    "ExpertKL",
    "ModelTerm",
    "Objective",
    "Outputs",
    "TeacherBatch",
    "TeacherOutputs",
    "report_metrics",
]
