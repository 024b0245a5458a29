"""The terms by name, each imported when it is asked for.

    term_class("entropy")                           # the class
    make_term(EntropyConfig())                      # a term with its settings

The names are those of ``config.objectives.TERM_CONFIGS``, save ``custom``: that class is in a file of the user's.
"""

from __future__ import annotations

import importlib
from typing import Any

from optmerge.config.objectives import CustomConfig, TermConfig
from optmerge.objective.base import ModelTerm
from optmerge.objective.coefficient import CoefficientTerm
from optmerge.objective.whole import WholeModelTerm

AnyTerm = ModelTerm | CoefficientTerm | WholeModelTerm

TERMS: dict[str, str] = {  # they judge the model on calibration data
    "entropy": "optmerge.objective.entropy:Entropy",
    "information-maximisation": "optmerge.objective.information_maximisation:InformationMaximisation",
    "expert-kl": "optmerge.objective.expert_kl:ExpertKL",
    "jensen-shannon": "optmerge.objective.jensen_shannon:JensenShannon",
    "pseudo-label": "optmerge.objective.pseudo_label:PseudoLabel",
    "hidden-alignment": "optmerge.objective.hidden_alignment:HiddenAlignment",
    "agreement": "optmerge.objective.agreement:Agreement",
    "cross-entropy": "optmerge.objective.labelled:CrossEntropy",
    "perplexity": "optmerge.objective.perplexity:Perplexity",
    "accuracy": "optmerge.objective.labelled:Accuracy",
    "f1": "optmerge.objective.f1:F1",
    "exact-match": "optmerge.objective.labelled:ExactMatch",
}
COEFFICIENT_TERMS: dict[str, str] = {  # they regularise the coefficients
    "anchor-l1": "optmerge.objective.anchors:AnchorL1",
    "anchor-l2": "optmerge.objective.anchors:AnchorL2",
    "smoothness": "optmerge.objective.smoothness:Smoothness",
    "l1": "optmerge.objective.sizes:L1",
    "l2": "optmerge.objective.sizes:L2",
    "similarity": "optmerge.objective.pairs:Similarity",
    "overlap": "optmerge.objective.pairs:Overlap",
}
WHOLE_MODEL_TERMS: dict[str, str] = {  # they judge the model on data of their own
    "lm-eval": "optmerge.objective.harness:LmEval",
}


def term_class(name: str) -> type[AnyTerm]:
    """The class of the term called ``name``, imported now.

    Raises:
        KeyError: There is no such term.
    """
    module, _, attribute = (TERMS | COEFFICIENT_TERMS | WHOLE_MODEL_TERMS)[name].partition(":")
    found: type[AnyTerm] = getattr(importlib.import_module(module), attribute)
    return found


def make_term(config: TermConfig) -> AnyTerm:
    """The term that a search file describes.

    Raises:
        ConfigError: It is a user's own, and cannot be loaded.
    """
    if isinstance(config, CustomConfig):
        from optmerge.objective.custom import load_term

        return load_term(config)
    make: Any = term_class(config.name)
    made: AnyTerm = make(config)
    return made
