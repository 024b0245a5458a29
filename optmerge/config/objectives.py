"""Settings of the objective's terms, one model per name; the classes are in ``optmerge.objective``."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from optmerge.config.base import Strict, named

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


class LmEvalConfig(Strict):
    """Tasks of EleutherAI's lm-evaluation-harness, scored on the merged causal language model. Reads their answers."""

    name: Literal["lm-eval"] = "lm-eval"
    weight: float = Field(1.0, description="factor in the weighted sum of terms")
    normalise: Literal["base", "none"] = Field("none", description="what the value is divided by")
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


class CustomConfig(Strict):
    """A term of your own: a class in a Python file (docs/own-term.md). The file is run."""

    name: Literal["custom"] = "custom"
    path: str = Field(description="FILE.py:CLASS; the file is relative to the search file")
    settings: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the class")
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

    terms: list[TermConfig] = Field(min_length=1, description="what is added up")
    task_weights: dict[str, float] = Field(
        default_factory=dict, description="weight of a task in the mean over tasks; 1 where not named"
    )
    aggregate: Annotated[AggregateConfig, BeforeValidator(named)] = Field(
        MeanConfig(),
        description="how tasks become one value, a name or a mapping with a name; a gradient of any but mean takes one "
        "more forward pass, and a backward pass for the tasks that count only",
    )
