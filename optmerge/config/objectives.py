"""Settings of the objective's terms, one model per name; the classes are in ``optmerge.objective``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from optmerge.config.base import Strict

Normaliser = Literal["base", "log-classes", "none"]


class EntropyConfig(Strict):
    """Shannon entropy of the prediction, in nats (AdaMerging, Yang et al. 2024, equation 4)."""

    name: Literal["entropy"] = "entropy"
    weight: float = Field(1.0, description="factor in the weighted sum of terms")
    normalise: Normaliser = Field("log-classes", description="what a task's mean is divided by")


class ExpertKLConfig(Strict):
    """KL divergence from the task's expert to the merged model, in nats (Hinton et al. 2015 with unlabelled inputs)."""

    name: Literal["expert-kl"] = "expert-kl"
    weight: float = Field(1.0, description="factor in the weighted sum of terms")
    normalise: Normaliser = Field("base", description="what a task's mean is divided by")
    temperature: float = Field(
        1.0, gt=0, description="softmax temperature T of both sides; the value is times T squared"
    )
    top_k: int | None = Field(
        128, ge=1, description="classes kept of the expert, the rest as one tail class; null or >= C = all"
    )


class CrossEntropyConfig(Strict):
    """Cross-entropy with the labels (completion tokens for language models), in nats. Reads labels."""

    name: Literal["cross-entropy"] = "cross-entropy"
    weight: float = Field(1.0, description="factor in the weighted sum of terms")
    normalise: Normaliser = Field("base", description="what a task's mean is divided by")


class AccuracyConfig(Strict):
    """Share of right predictions (completion tokens for language models). Reads labels; higher is better."""

    name: Literal["accuracy"] = "accuracy"
    weight: float = Field(1.0, description="factor in the weighted sum of terms")
    normalise: Normaliser = Field("none", description="what a task's mean is divided by")


TermConfig = Annotated[
    EntropyConfig | ExpertKLConfig | CrossEntropyConfig | AccuracyConfig, Field(discriminator="name")
]
TERM_CONFIGS: dict[str, type[Strict]] = {
    "entropy": EntropyConfig,
    "expert-kl": ExpertKLConfig,
    "cross-entropy": CrossEntropyConfig,
    "accuracy": AccuracyConfig,
}
LABELLED_TERMS = frozenset({"cross-entropy", "accuracy"})  # these read labels


class ObjectiveConfig(Strict):
    """A weighted composition of terms; each task's mean is normalised before tasks are averaged."""

    terms: list[TermConfig] = Field(min_length=1, description="what is added up")
    task_weights: dict[str, float] = Field(
        default_factory=dict, description="weight of a task in the mean over tasks; 1 where not named"
    )
