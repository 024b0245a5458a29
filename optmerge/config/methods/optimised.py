"""Settings of the methods that score columns (WIDEN) or optimise a delta without data (DOGE, WUDI)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, FiniteFloat

from optmerge.config.methods.base import (
    EMBEDDINGS,
    OTHERS,
    SHARES,
    TOLERANCE,
    WEIGHTS,
    Embeddings,
    Facts,
    MethodSettings,
    Others,
    Scope,
    Share,
    searched,
)


class WidenConfig(MethodSettings):
    """Every column of every task vector weighted by how much it changes magnitude and direction, by rank.

    Yu et al. 2024, "Extend Model Merging from Fine-Tuned to Pre-Trained Large Language Models via Weight
    Disentanglement".
    """

    facts = Facts(paper="Yu et al. 2024", cost="one pass over the weights and a sort of the columns", linear=True)
    name: Literal["widen"] = "widen"
    ratio: float = Field(
        1.0,
        ge=0,
        description="columns whose rank is above this multiple of the expert's mean rank are important",
        json_schema_extra=searched(0.5, 1.5),
    )
    calibration: float = Field(
        1.0,
        ge=0,
        description="score of important columns; 1 adds up the experts that find a column important, 1/K averages them",
        json_schema_extra=searched(0.2, 1.0),
    )
    weights: dict[str, FiniteFloat] | None = Field(None, description=WEIGHTS + "; the scores do not depend on it")
    others: Literal["score", "mean", "sum", "base"] = Field(
        "score",
        description="what is not a matrix gets: score (entry by entry, by magnitude), or mean, sum or base",
    )
    embeddings: Embeddings = Field(
        "matrix", description=EMBEDDINGS + "; a column of an embedding is one token's vector"
    )


class DogeConfig(MethodSettings):
    """Task vectors of equal norm plus a change that all share, which gradient descent makes them agree by.

    Wei et al. 2025, "Modeling Multi-Task Model Merging as Adaptive Projective Gradient Descent".
    """

    facts = Facts(paper="Wei et al. 2025", cost="K + 1 SVDs and 400 K passes per matrix")
    name: Literal["doge"] = "doge"
    eta: float = Field(
        0.07,
        gt=0,
        description="Frobenius norm that each expert's part of a matrix gets, in the unit of the weights",
        json_schema_extra=searched(0.01, 1.0, log=True),
    )
    density: float = Field(
        0.3,
        ge=0,
        le=1,
        description="share of each task vector's entries that is kept after the descent, the largest of the task "
        "vector itself, 0-1",
        json_schema_extra=searched(0.05, 1.0, log=True),
    )
    scope: Scope = Field("model", description="over what the largest are chosen, as in ties, among the matrices")
    subspace: float = Field(
        6.0,
        ge=1,
        description="the subspace that the experts share has the rank of the matrix divided by this",
        json_schema_extra=searched(2.0, 24.0, log=True),
    )
    project: Literal["gradient", "update"] = Field(
        "gradient",
        description="what is projected off the shared subspace: gradient (the authors' code; Adam's scaling leads part "
        "of it back) or update (the change then has no part in the subspace)",
    )
    steps: int = Field(400, ge=0, le=100_000, description="of Adam, per matrix", json_schema_extra=searched(0, 1000))
    lr: float = Field(
        1e-4,
        gt=0,
        description="learning rate of Adam, in the unit of the weights",
        json_schema_extra=searched(1e-5, 1e-2, log=True),
    )
    tolerance: float = Field(1e-6, ge=0, lt=1, description=TOLERANCE)
    weights: dict[str, FiniteFloat] | None = Field(None, description=WEIGHTS + "; it multiplies eta")
    others: Others = Field("base", description=OTHERS)
    embeddings: Embeddings = Field("base", description=EMBEDDINGS)


class WudiConfig(MethodSettings):
    """The matrix that differs least from every task vector on the inputs that the task vector itself points at.

    Cheng et al. 2025, "Whoever Started the Interference Should End It": the rows of a linear layer's task
    vector are sums of its inputs, so that tau^T tau stands for the inputs' Gram matrix.
    """

    facts = Facts(paper="Cheng et al. 2025", cost="300 products with a Gram matrix of the inputs per matrix")
    name: Literal["wudi"] = "wudi"
    solver: Literal["adam", "exact"] = Field(
        "adam",
        description="adam (the paper: steps from the sum of the task vectors) or exact (the minimum itself, by least "
        "squares; steps and lr have no say)",
    )
    steps: int = Field(300, ge=0, le=100_000, description="of Adam, per matrix", json_schema_extra=searched(0, 1000))
    lr: float = Field(
        1e-5,
        gt=0,
        description="learning rate of Adam, in the unit of the weights",
        json_schema_extra=searched(1e-6, 1e-3, log=True),
    )
    tolerance: float = Field(1e-6, ge=0, lt=1, description=TOLERANCE + "; of the solver exact")
    weights: dict[str, Share] | None = Field(None, description=SHARES + "; it multiplies the task vector")
    others: Others = Field("mean", description=OTHERS)
    embeddings: Embeddings = Field("mean", description=EMBEDDINGS)


class Wudi2Config(MethodSettings):
    """WUDI on the leading singular components of every task vector, without their noise: its second version.

    Wei et al. 2025, "OptMerge: Unifying Multimodal LLM Capabilities and Modalities via Model Merging", and its code.
    """

    facts = Facts(paper="Wei et al. 2025, OptMerge", cost="2 K SVDs and 300 products with a Gram matrix per matrix")
    name: Literal["wudi-2"] = "wudi-2"
    experts: Literal["full", "adapters"] = Field(
        "full",
        description="how the experts were tuned: full (every weight; Adam from the sum of the task vectors, the target "
        "is what an expert has beside the mean) or adapters (LoRA; momentum from their mean)",
    )
    ranks: float = Field(
        1.0,
        gt=0,
        description="each expert keeps this share of 1/K of the ranks; 1 is the paper's",
        json_schema_extra=searched(0.25, 4.0, log=True),
    )
    steps: int = Field(300, ge=0, le=100_000, description="per matrix", json_schema_extra=searched(0, 1000))
    lr: float | None = Field(None, gt=0, description="learning rate; null = 1e-5 of Adam for full, 1e-4 for adapters")
    tolerance: float = Field(1e-6, ge=0, lt=1, description=TOLERANCE)
    weights: dict[str, Share] | None = Field(None, description=SHARES + "; it multiplies the task vector")
    others: Others = Field("mean", description=OTHERS)
    embeddings: Embeddings = Field("mean", description=EMBEDDINGS)


OptimisedConfig = WidenConfig | DogeConfig | WudiConfig | Wudi2Config
