"""Settings of the objective's terms, one model per name; the classes are in ``optmerge.objective``.

A term judges the merged model on calibration data (`ModelTermConfig`), or regularises its coefficients. What a search
file's checks must know of a term's class without importing torch stands here as class variables, and a test holds both
equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator

from optmerge.config.base import Strict, named

Normaliser = Literal["base", "log-classes", "none"]


class TermConfig(Strict):
    """What every term has.

    Attributes:
        differentiable: Whether the term has a useful gradient.
        labelled: Whether it reads labels.
        about: What it judges: the merged model on calibration data, its coefficients, or the whole model on data of
            the term's own.
    """

    differentiable: ClassVar[bool] = True
    labelled: ClassVar[bool] = False
    about: ClassVar[Literal["model", "coefficients", "whole-model"]] = "model"

    name: str
    weight: float = Field(1.0, allow_inf_nan=False, description="factor in the weighted sum of terms")


class ModelTermConfig(TermConfig):
    """What every term has that judges the model on calibration data."""

    normalise: Normaliser = Field("base", description="what a task's mean is divided by")


class CoefficientTermConfig(TermConfig):
    """What every term has that regularises the coefficients; its value is added once, not per task."""

    about: ClassVar[Literal["model", "coefficients", "whole-model"]] = "coefficients"


TOP_K, TAIL_SAMPLES = 64, 64
_TOP_K = "classes kept of the expert, of which all others count as one; null = all"
_TAIL_SAMPLES = (
    "classes drawn from those others by the expert's probabilities, to judge what happens among them; with no more "
    "classes than top_k and these, all are kept"
)


class EntropyConfig(ModelTermConfig):
    """Shannon entropy of the prediction, in nats (AdaMerging, Yang et al. 2024, equation 4)."""

    name: Literal["entropy"] = "entropy"
    normalise: Normaliser = Field("log-classes", description="what a task's mean is divided by")


class ExpertKLConfig(ModelTermConfig):
    """KL divergence from the task's expert to the merged model, in nats (Hinton et al. 2015 with unlabelled inputs)."""

    name: Literal["expert-kl"] = "expert-kl"
    temperature: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="softmax temperature T of both sides; the value is times T squared"
    )
    top_k: int | None = Field(TOP_K, ge=1, description=_TOP_K)
    tail_samples: int = Field(TAIL_SAMPLES, ge=0, description=_TAIL_SAMPLES)


class CrossEntropyConfig(ModelTermConfig):
    """Cross-entropy with the labels (completion tokens for language models), in nats. Reads labels."""

    labelled: ClassVar[bool] = True

    name: Literal["cross-entropy"] = "cross-entropy"


class AccuracyConfig(ModelTermConfig):
    """Share of right predictions (completion tokens for language models). Reads labels; higher is better."""

    differentiable: ClassVar[bool] = False
    labelled: ClassVar[bool] = True

    name: Literal["accuracy"] = "accuracy"
    normalise: Normaliser = Field("none", description="what a task's mean is divided by")


class InformationMaximisationConfig(ModelTermConfig):
    """Mean entropy of the predictions minus the entropy of their mean, in nats (SHOT, Liang et al. 2020)."""

    name: Literal["information-maximisation"] = "information-maximisation"
    normalise: Literal["log-classes", "none"] = Field(
        "log-classes", description="what a task's value is divided by; not the base's, which may be negative"
    )
    diversity: float = Field(1.0, ge=0, description="weight of the mean prediction's entropy")


class JensenShannonConfig(ModelTermConfig):
    """Jensen-Shannon divergence between the task's expert and the merged model, in nats, at most log 2 (Lin 1991)."""

    name: Literal["jensen-shannon"] = "jensen-shannon"
    top_k: int | None = Field(TOP_K, ge=1, description=_TOP_K)
    tail_samples: int = Field(TAIL_SAMPLES, ge=0, description=_TAIL_SAMPLES)


class PseudoLabelConfig(ModelTermConfig):
    """Cross-entropy with the expert's own choice, in nats (SyMerge, arXiv 2412.19098)."""

    name: Literal["pseudo-label"] = "pseudo-label"
    filter: Literal["agreement", "none"] = Field(
        "agreement",
        description="what counts: predictions where both choose the same class or the expert is at least as confident "
        "(a gradient takes one more forward pass), or all",
    )


Layer = Annotated[int, Field(strict=True, ge=0)] | Annotated[float, Field(gt=0, le=1)]


class HiddenAlignmentConfig(ModelTermConfig):
    """Mean squared error to the expert's hidden states (Expert Merging, ICLR 2026)."""

    name: Literal["hidden-alignment"] = "hidden-alignment"
    layers: Literal["middle"] | Annotated[list[Layer], Field(min_length=1)] = Field(
        "middle",
        description="whose outputs are compared: layers by index from 0 (whole numbers), or by depth (0.5 = the one "
        "that ends the first half, 1.0 = the last)",
    )
    project: int | None = Field(
        None,
        ge=1,
        description="compare in so many dimensions, by a fixed random projection, so that less is kept of the experts; "
        "null = in all of them",
    )


class PerplexityConfig(ModelTermConfig):
    """Exponential of the mean cross-entropy over all scored tokens. Reads labels."""

    labelled: ClassVar[bool] = True

    name: Literal["perplexity"] = "perplexity"


class F1Config(ModelTermConfig):
    """Macro F1 over the classes, prediction by prediction. Reads labels; higher is better."""

    differentiable: ClassVar[bool] = False
    labelled: ClassVar[bool] = True

    name: Literal["f1"] = "f1"
    normalise: Normaliser = Field("none", description="what a task's value is divided by")


class ExactMatchConfig(ModelTermConfig):
    """Share of examples where every prediction is right. Reads labels; higher is better."""

    differentiable: ClassVar[bool] = False
    labelled: ClassVar[bool] = True

    name: Literal["exact-match"] = "exact-match"
    normalise: Normaliser = Field("none", description="what a task's mean is divided by")


class AgreementConfig(ModelTermConfig):
    """Share of predictions where merged model and expert choose the same class; higher is better."""

    differentiable: ClassVar[bool] = False

    name: Literal["agreement"] = "agreement"
    normalise: Normaliser = Field("none", description="what a task's mean is divided by")


Scale = Literal["none", "norms"]
_SCALE = "how much a coefficient counts: all alike (none), or by the norm of the delta that it multiplies (norms)"


class AnchorL1Config(CoefficientTermConfig):
    """Mean absolute distance of the searched coefficients from their start (Expert Merging, ICLR 2026, R)."""

    name: Literal["anchor-l1"] = "anchor-l1"
    scale: Scale = Field("norms", description=_SCALE)


class AnchorL2Config(CoefficientTermConfig):
    """Mean squared distance of the searched coefficients from their start."""

    name: Literal["anchor-l2"] = "anchor-l2"
    scale: Scale = Field("norms", description=_SCALE)


class L1Config(CoefficientTermConfig):
    """Sum of the searched coefficients' absolute values (DAM, Arcee 2024)."""

    name: Literal["l1"] = "l1"
    weight: float = Field(1e-6, allow_inf_nan=False, description="factor in the weighted sum of terms")


class L2Config(CoefficientTermConfig):
    """Euclidean norm of each direction's searched coefficients, summed over directions (DAM, Arcee 2024)."""

    name: Literal["l2"] = "l2"
    weight: float = Field(1e-6, allow_inf_nan=False, description="factor in the weighted sum of terms")


class SimilarityConfig(CoefficientTermConfig):
    """Cosine similarity between two directions' coefficients, mean over pairs (DAM, Arcee 2024)."""

    name: Literal["similarity"] = "similarity"
    weight: float = Field(0.01, allow_inf_nan=False, description="factor in the weighted sum of terms")


class OverlapConfig(CoefficientTermConfig):
    """Sum of min(|a|, |b|) over two directions' coefficients, mean over pairs (DAM, Arcee 2024)."""

    name: Literal["overlap"] = "overlap"
    weight: float = Field(1e-5, allow_inf_nan=False, description="factor in the weighted sum of terms")


class SmoothnessConfig(CoefficientTermConfig):
    """Mean squared second difference of the coefficients across depth, per kind of tensor and direction."""

    name: Literal["smoothness"] = "smoothness"


class DocumentShares(Strict):
    """How the documents of each lm-eval task are divided, by the hash of their content."""

    fit: float = Field(0.5, gt=0, lt=1, description="share of the documents that the driver is told about")
    select: float = Field(0.25, gt=0, lt=1, description="share that decides which iterate is best")
    report: float = Field(0.25, gt=0, lt=1, description="share that the tables show")

    @model_validator(mode="after")
    def _no_more_than_all(self) -> Self:
        total = self.fit + self.select + self.report
        if total > 1 + 1e-9:
            raise ValueError(f"fit, select and report are {total:g} together; expected shares of at most 1")
        return self


class LmEvalConfig(TermConfig):
    """Tasks of EleutherAI's lm-evaluation-harness, scored on the merged causal language model. Reads their answers."""

    differentiable: ClassVar[bool] = False
    labelled: ClassVar[bool] = True
    about: ClassVar[Literal["model", "coefficients", "whole-model"]] = "whole-model"

    name: Literal["lm-eval"] = "lm-eval"
    tasks: list[str] = Field(
        min_length=1,
        description="task YAML files, relative to the search file, or names of tasks that lm-eval ships; the value is "
        "the mean over tasks",
    )
    metric: str = Field("acc,none", description="metric and filter, as lm-eval's results call them")
    limit: int | None = Field(None, ge=1, description="most documents per task and split")
    shares: DocumentShares = Field(DocumentShares(), description="how a task's documents are divided")
    num_fewshot: int | None = Field(None, ge=0, description="examples in the prompt; null = the task's own number")
    batch_size: int = Field(8, ge=1, description="requests in one forward pass")
    chat_template: bool = Field(False, description="put the prompts into the tokenizer's chat template")
    allow_public_tests: bool = Field(
        False, description="optimise on test sets of public benchmarks all the same; say so with the results"
    )


def is_task_file(task: str) -> bool:
    """Whether an entry of an lm-eval term's tasks is a YAML file rather than the name of a task that lm-eval ships."""
    return task.endswith((".yaml", ".yml"))


def task_files(objectives: Iterable[object]) -> list[str]:
    """The YAML files that lm-eval terms name, of objectives as plain data; parts that are malformed are passed over.

    >>> task_files([{"terms": [{"name": "lm-eval", "tasks": ["mine.yaml", "gsm8k"]}]}])
    ['mine.yaml']
    """
    parts = [part for one in objectives if isinstance(one, Mapping) for part in (one.get("terms"), one.get("select"))]
    terms = [term for part in parts if isinstance(part, list) for term in part if isinstance(term, Mapping)]
    listed = [term["tasks"] for term in terms if isinstance(term.get("tasks"), list)]
    return [task for tasks in listed for task in tasks if isinstance(task, str) and is_task_file(task)]


class CustomConfig(ModelTermConfig):
    """A term of your own: a class in a Python file (docs/own-term.md), which is run. The class says its name."""

    name: Literal["custom"] = "custom"
    path: str = Field(description="FILE.py:CLASS; the file is relative to the search file")
    settings: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the class")
    normalise: Normaliser = Field(
        "none", description="what a task's mean is divided by, where the class is a ModelTerm"
    )


ModelTerms = (
    EntropyConfig
    | InformationMaximisationConfig
    | ExpertKLConfig
    | JensenShannonConfig
    | PseudoLabelConfig
    | HiddenAlignmentConfig
    | AgreementConfig
    | CrossEntropyConfig
    | PerplexityConfig
    | AccuracyConfig
    | F1Config
    | ExactMatchConfig
)
CoefficientTerms = (
    AnchorL1Config | AnchorL2Config | SmoothnessConfig | L1Config | L2Config | SimilarityConfig | OverlapConfig
)
JudgingTerms = ModelTerms | LmEvalConfig | CustomConfig
AnyTerm = JudgingTerms | CoefficientTerms

TERM_CONFIGS: dict[str, type[TermConfig]] = {  # of the terms that come with optmerge
    config.model_fields["name"].default: config for config in get_args(AnyTerm) if config is not CustomConfig
}
LABELLED_TERMS = frozenset(name for name, config in TERM_CONFIGS.items() if config.labelled)


def no_gradient(driver: str, terms: Iterable[str], *, drivers: Iterable[str]) -> str:
    """What to tell somebody whose driver follows a gradient that some terms do not have.

    Args:
        driver: Its name.
        terms: The terms that have none.
        drivers: Drivers that need none.
    """
    named = list(terms)
    able = [name for name, config in TERM_CONFIGS.items() if config.differentiable and config.about == "model"]
    return (
        f"driver is {driver}, which needs a gradient, and the objective's "
        f"term{'s' if len(named) > 1 else ''} {' and '.join(named)} {'have' if len(named) > 1 else 'has'} none. "
        f"Use a driver that needs none ({', '.join(drivers)}), or terms that have one ({', '.join(able)})."
    )


class MeanConfig(Strict):
    """The weighted mean over tasks."""

    name: Literal["mean"] = "mean"


class WorstConfig(Strict):
    """The part of the task that is worst off."""

    name: Literal["worst"] = "worst"


class CVaRConfig(Strict):
    """The mean of the worst tasks: conditional value at risk with the task weights (Rockafellar & Uryasev 2000)."""

    name: Literal["cvar"] = "cvar"
    share: float = Field(0.5, gt=0, le=1, description="how many of the tasks, as a share; rounded up to whole tasks")


AggregateConfig = Annotated[MeanConfig | WorstConfig | CVaRConfig, Field(discriminator="name")]
AGGREGATE_CONFIGS: dict[str, type[Strict]] = {"mean": MeanConfig, "worst": WorstConfig, "cvar": CVaRConfig}


class ObjectiveConfig(Strict):
    """A weighted composition of terms; each task's mean is normalised before tasks are put together."""

    terms: list[Annotated[AnyTerm, Field(discriminator="name")]] = Field(min_length=1, description="what is added up")
    select: list[Annotated[JudgingTerms, Field(discriminator="name")]] | None = Field(
        None,
        min_length=1,
        description="terms that choose the best iterate, on the select split; null = those of `terms` that judge the "
        "model",
    )
    task_weights: dict[str, float] = Field(
        default_factory=dict, description="weight of a task in the mean over tasks; 1 where not named"
    )
    aggregate: Annotated[AggregateConfig, BeforeValidator(named)] = Field(
        MeanConfig(),
        description="how tasks become one value, a name or a mapping with a name; a gradient of any but mean takes one "
        "more forward pass, and a backward pass for the tasks that count only",
    )

    @model_validator(mode="after")
    def _judges_the_model(self) -> Self:
        if all(term.about == "coefficients" for term in self.terms):
            names = ", ".join(term.name for term in self.terms)
            raise ValueError(
                f"terms: {names} looks at the coefficients only, so that nothing says what a good merge is; add a term "
                "that judges the model, such as expert-kl."
            )
        return self
