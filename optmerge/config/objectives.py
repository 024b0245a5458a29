"""Settings of the objective's terms, one model per name; the classes are in ``optmerge.objective``.

A term judges the merged model on calibration data (`ModelTermConfig`), or regularises its coefficients. What a search
file's checks must know of a term's class without importing torch stands here as class variables, and a test holds both
equal.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal, Self

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
    weight: float = Field(1.0, description="factor in the weighted sum of terms")


class ModelTermConfig(TermConfig):
    """What every term has that judges the model on calibration data."""

    normalise: Normaliser = Field("base", description="what a task's mean is divided by")


class CoefficientTermConfig(TermConfig):
    """What every term has that regularises the coefficients; its value is added once, not per task."""

    about: ClassVar[Literal["model", "coefficients", "whole-model"]] = "coefficients"


class EntropyConfig(ModelTermConfig):
    """Shannon entropy of the prediction, in nats (AdaMerging, Yang et al. 2024, equation 4)."""

    name: Literal["entropy"] = "entropy"
    normalise: Normaliser = Field("log-classes", description="what a task's mean is divided by")


class ExpertKLConfig(ModelTermConfig):
    """KL divergence from the task's expert to the merged model, in nats (Hinton et al. 2015 with unlabelled inputs)."""

    name: Literal["expert-kl"] = "expert-kl"
    temperature: float = Field(
        1.0, gt=0, description="softmax temperature T of both sides; the value is times T squared"
    )
    top_k: int | None = Field(
        128, ge=1, description="classes kept of the expert, the rest as one tail class; null or >= C = all"
    )


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


ModelTerms = EntropyConfig | ExpertKLConfig | CrossEntropyConfig | AccuracyConfig
AnyTerm = ModelTerms

TERM_CONFIGS: dict[str, type[TermConfig]] = {
    "entropy": EntropyConfig,
    "expert-kl": ExpertKLConfig,
    "cross-entropy": CrossEntropyConfig,
    "accuracy": AccuracyConfig,
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
    select: list[Annotated[ModelTerms, Field(discriminator="name")]] | None = Field(
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
