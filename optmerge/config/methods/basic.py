"""Settings of the methods that every peer has: averages, task arithmetic, TIES, DARE, Iso-C, TSV-M, RegMean."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, FiniteFloat

from optmerge.config.methods.base import (
    COMPAT,
    EMBEDDINGS,
    OTHERS,
    SHARES,
    TOLERANCE,
    WEIGHTS,
    Compat,
    Embeddings,
    Facts,
    MethodSettings,
    Others,
    Scope,
    Share,
    searched,
)


class AverageConfig(MethodSettings):
    """The mean of the experts (Wortsman et al. 2022, uniform soup)."""

    facts = Facts(paper="Wortsman et al. 2022", cost="one pass over the weights", mergekit="linear")
    name: Literal["average"] = "average"


class LinearConfig(MethodSettings):
    """The weighted mean of the experts, or with ``normalize: false`` their weighted sum (Wortsman et al. 2022)."""

    facts = Facts(paper="Wortsman et al. 2022", cost="one pass over the weights", mergekit="linear")
    name: Literal["linear"] = "linear"
    weights: dict[str, FiniteFloat] | None = Field(None, description=WEIGHTS)
    normalize: bool = Field(True, description="divide by the sum of the weights, so that it is a mean")


class TaskArithmeticConfig(MethodSettings):
    """base + sum of coefficient times task vector (Ilharco et al. 2023, section 2)."""

    facts = Facts(
        paper="Ilharco et al. 2023",
        cost="one pass over the weights",
        scale=0.3,
        linear=True,
        alone=True,
        mergekit="task_arithmetic",
    )
    name: Literal["task_arithmetic"] = "task_arithmetic"
    weights: dict[str, FiniteFloat] | None = Field(None, description=WEIGHTS)


class SlerpConfig(MethodSettings):
    """Spherical interpolation of two experts, or of the base and one expert (Shoemake 1985), tensor by tensor."""

    facts = Facts(paper="Shoemake 1985", cost="two passes over the weights", mergekit="slerp", experts=(1, 2))
    name: Literal["slerp"] = "slerp"
    t: float = Field(
        0.5,
        ge=0,
        le=1,
        description="where between the two, 0-1: 0 = the first (or base), 1 = the other",
        json_schema_extra=searched(0.0, 1.0),
    )
    compat: Compat = Field("paper", description=COMPAT)


class TiesConfig(MethodSettings):
    """Trim, elect a sign per parameter, and average what agrees with it (Yadav et al. 2023, algorithm 1)."""

    facts = Facts(paper="Yadav et al. 2023", cost="two passes over the weights", mergekit="ties")
    name: Literal["ties"] = "ties"
    density: float = Field(
        0.2,
        ge=0,
        le=1,
        description="share of each task vector's entries that is kept, 0-1",
        json_schema_extra=searched(0.05, 1.0, log=True, grid=(0.05, 0.1, 0.2, 0.3, 0.4)),
    )
    scope: Scope | None = Field(
        None,
        description="over what the largest are chosen: model, tensor, row (inputs of one output) or stacked (a tensor "
        "of all experts together); null = model by the paper, tensor by mergekit",
    )
    normalize: bool = Field(True, description="divide by the weights of what was kept (mean); false = sum")
    weights: dict[str, Share] | None = Field(None, description=SHARES)
    compat: Compat = Field("paper", description=COMPAT)


class DareConfig(MethodSettings):
    """Drop entries of the task vectors at random, rescale the rest, and add them up (Yu et al. 2024, section 3)."""

    facts = Facts(
        paper="Yu et al. 2024",
        cost="one pass over the weights",
        scale=0.3,
        linear=True,
        alone=True,
        mergekit="dare_linear",
    )
    name: Literal["dare"] = "dare"
    drop: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="probability that an entry is dropped, 0 up to (not with) 1",
        json_schema_extra=searched(0.0, 0.95, grid=(0.1, 0.3, 0.5, 0.7, 0.9)),
    )
    rescale: bool = Field(True, description="make up for what was dropped: by 1/(1-drop), or by mergekit's L1 norm")
    seed: int = Field(0, ge=0, description="of the masks; an expert's mask of a tensor depends on nothing else")
    weights: dict[str, FiniteFloat] | None = Field(None, description=WEIGHTS)
    compat: Compat = Field("paper", description=COMPAT)


class DareTiesConfig(MethodSettings):
    """DARE's random drop before TIES (Yu et al. 2024, section 3)."""

    facts = Facts(paper="Yu et al. 2024", cost="two passes over the weights", mergekit="dare_ties")
    name: Literal["dare-ties"] = "dare-ties"
    drop: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="probability that an entry is dropped, 0 up to (not with) 1",
        json_schema_extra=searched(0.0, 0.95, grid=(0.1, 0.3, 0.5, 0.7, 0.9)),
    )
    rescale: bool = Field(True, description="make up for what was dropped: by 1/(1-drop), or by mergekit's L1 norm")
    seed: int = Field(0, ge=0, description="of the masks; an expert's mask of a tensor depends on nothing else")
    density: float | None = Field(
        None, ge=0, le=1, description="TIES' trim, as in ties; null = 0.2 by the paper, 1 (no trim) by mergekit"
    )
    scope: Scope | None = Field(None, description="of the trim, as in ties; null = model by the paper, else tensor")
    normalize: bool | None = Field(
        None, description="divide by the weights of what was kept; null = true by the paper, false by mergekit"
    )
    weights: dict[str, Share] | None = Field(None, description=SHARES)
    compat: Compat = Field("paper", description=COMPAT)


class TiesSplitConfig(MethodSettings):
    """TIES without its mean: each trimmed task vector, where it has the elected sign (Yang et al. 2024, section 3)."""

    facts = Facts(paper="Yang et al. 2024", cost="two passes over the weights", scale=0.3, linear=True)
    name: Literal["ties-split"] = "ties-split"
    density: float = Field(
        0.2,
        ge=0,
        le=1,
        description="share of each task vector's entries that is kept, 0-1",
        json_schema_extra=searched(0.05, 1.0, log=True, grid=(0.05, 0.1, 0.2, 0.3, 0.4)),
    )
    scope: Scope = Field("model", description="over what the largest are chosen, as in ties")
    weights: dict[str, FiniteFloat] | None = Field(None, description=WEIGHTS)


class IsoCConfig(MethodSettings):
    """Isotropic merging in the common subspace: the summed task vectors with a flat spectrum.

    Marczak et al. 2025, algorithm 1.
    """

    facts = Facts(paper="Marczak et al. 2025", cost="one SVD per matrix")
    name: Literal["iso-c"] = "iso-c"
    tolerance: float = Field(1e-6, ge=0, lt=1, description=TOLERANCE)
    weights: dict[str, FiniteFloat] | None = Field(None, description=WEIGHTS)
    others: Others = Field("mean", description=OTHERS)
    embeddings: Embeddings = Field("matrix", description=EMBEDDINGS)


class TsvMConfig(MethodSettings):
    """Task singular vectors: the experts' leading singular vectors, whitened together (Gargiulo et al. 2025)."""

    facts = Facts(paper="Gargiulo et al. 2025", cost="K + 2 SVDs per matrix", linear=True)
    name: Literal["tsv-m"] = "tsv-m"
    ranks: FiniteFloat = Field(
        1.0,
        gt=0,
        description="components that each expert keeps, as a multiple of its equal part of the ranks, 1/K of them; "
        "above 1 the experts' components overlap",
        json_schema_extra=searched(0.25, 2.0, log=True),
    )
    tolerance: float = Field(1e-6, ge=0, lt=1, description=TOLERANCE)
    weights: dict[str, FiniteFloat] | None = Field(None, description=WEIGHTS + "; it scales the singular values")
    others: Others = Field("mean", description=OTHERS)
    embeddings: Embeddings = Field("matrix", description=EMBEDDINGS)


class RegMeanConfig(MethodSettings):
    """Linear layers whose outputs are nearest to the experts' on their own inputs (Jin et al. 2023, equation 2)."""

    facts = Facts(
        paper="Jin et al. 2023", cost="one pass over the inputs per expert, one solve per layer", needs=("grams",)
    )
    name: Literal["regmean"] = "regmean"
    shrink: float = Field(
        0.9,
        ge=0,
        le=1,
        description="share of the Gram matrices' off-diagonal that is kept, 0-1 (the paper's alpha)",
        json_schema_extra=searched(0.1, 1.0, grid=(0.1, 0.3, 0.5, 0.7, 0.9, 1.0)),
    )
    ridge: float = Field(
        1e-6, ge=0, le=1, description="added to the summed Gram's diagonal, as a share of it; pulls towards the mean"
    )
    weights: dict[str, Share] | None = Field(None, description=SHARES)
    others: Literal["mean", "base"] = Field(
        "mean", description="what has no Gram matrix (norms, biases, embeddings) gets: mean, or base (as it is)"
    )


BasicConfig = (
    AverageConfig
    | LinearConfig
    | TaskArithmeticConfig
    | SlerpConfig
    | TiesConfig
    | DareConfig
    | DareTiesConfig
    | TiesSplitConfig
    | IsoCConfig
    | TsvMConfig
    | RegMeanConfig
)
