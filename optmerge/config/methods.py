"""Settings of the merging methods; the methods themselves are in ``optmerge.merging.methods``.

A method's delta is made at scale 1: the scale of the papers (lambda, alpha) is the coefficient of the direction.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from optmerge.config.base import Strict

Compat = Literal["paper", "mergekit"]
Scope = Literal["model", "tensor", "row", "stacked"]
Others = Literal["mean", "sum", "base"]
Embeddings = Literal["matrix", "mean", "sum", "base"]
Share = Annotated[FiniteFloat, Field(ge=0)]

_WEIGHTS = "expert's name -> weight of its task vector; null, or an expert left out = 1"
_SHARES = "expert's name -> weight, 0 or more; null, or an expert left out = 1"
_COMPAT = "whose rules hold where the two differ: the paper's, or those of mergekit 0.1.5 (see docs/methods.md)"
_TOLERANCE = "singular values below this share of the largest are cut, 0-1 (their directions are arbitrary)"
_OTHERS = "what is not a matrix gets: mean or sum of the task vectors, or base (it stays as it is)"
_EMBEDDINGS = "what embeddings and heads get: matrix (treated like any matrix), mean, sum or base"


class AverageConfig(Strict):
    """The mean of the experts (Wortsman et al. 2022, uniform soup)."""

    name: Literal["average"] = "average"


class LinearConfig(Strict):
    """The weighted mean of the experts, or with ``normalize: false`` their weighted sum (Wortsman et al. 2022)."""

    name: Literal["linear"] = "linear"
    weights: dict[str, FiniteFloat] | None = Field(None, description=_WEIGHTS)
    normalize: bool = Field(True, description="divide by the sum of the weights, so that it is a mean")


class TaskArithmeticConfig(Strict):
    """base + sum of coefficient times task vector (Ilharco et al. 2023, section 2)."""

    name: Literal["task_arithmetic"] = "task_arithmetic"
    weights: dict[str, FiniteFloat] | None = Field(None, description=_WEIGHTS)


class SlerpConfig(Strict):
    """Spherical interpolation of two experts, or of the base and one expert (Shoemake 1985), tensor by tensor."""

    name: Literal["slerp"] = "slerp"
    t: float = Field(0.5, ge=0, le=1, description="where between the two, 0-1: 0 = the first (or base), 1 = the other")


class TiesConfig(Strict):
    """Trim, elect a sign per parameter, and average what agrees with it (Yadav et al. 2023, algorithm 1)."""

    name: Literal["ties"] = "ties"
    density: float = Field(0.2, ge=0, le=1, description="share of each task vector's entries that is kept, 0-1")
    scope: Scope | None = Field(
        None,
        description="over what the largest are chosen: model, tensor, row (inputs of one output) or stacked (a tensor "
        "of all experts together); null = model by the paper, tensor by mergekit",
    )
    normalize: bool = Field(True, description="divide by the weights of what was kept (mean); false = sum")
    weights: dict[str, Share] | None = Field(None, description=_SHARES)
    compat: Compat = Field("paper", description=_COMPAT)


class DareConfig(Strict):
    """Drop entries of the task vectors at random, rescale the rest, and add them up (Yu et al. 2024, section 3)."""

    name: Literal["dare"] = "dare"
    drop: float = Field(0.5, ge=0, lt=1, description="probability that an entry is dropped, 0 up to (not with) 1")
    rescale: bool = Field(True, description="make up for what was dropped: by 1/(1-drop), or by mergekit's L1 norm")
    seed: int = Field(0, ge=0, description="of the masks; an expert's mask of a tensor depends on nothing else")
    weights: dict[str, FiniteFloat] | None = Field(None, description=_WEIGHTS)
    compat: Compat = Field("paper", description=_COMPAT)


class DareTiesConfig(Strict):
    """DARE's random drop before TIES (Yu et al. 2024, section 3)."""

    name: Literal["dare-ties"] = "dare-ties"
    drop: float = Field(0.5, ge=0, lt=1, description="probability that an entry is dropped, 0 up to (not with) 1")
    rescale: bool = Field(True, description="make up for what was dropped: by 1/(1-drop), or by mergekit's L1 norm")
    seed: int = Field(0, ge=0, description="of the masks; an expert's mask of a tensor depends on nothing else")
    density: float | None = Field(
        None, ge=0, le=1, description="TIES' trim, as in ties; null = 0.2 by the paper, 1 (no trim) by mergekit"
    )
    scope: Scope | None = Field(None, description="of the trim, as in ties; null = model by the paper, else tensor")
    normalize: bool | None = Field(
        None, description="divide by the weights of what was kept; null = true by the paper, false by mergekit"
    )
    weights: dict[str, Share] | None = Field(None, description=_SHARES)
    compat: Compat = Field("paper", description=_COMPAT)


class TiesSplitConfig(Strict):
    """TIES without its mean: each trimmed task vector, where it has the elected sign (Yang et al. 2024, section 3)."""

    name: Literal["ties-split"] = "ties-split"
    density: float = Field(0.2, ge=0, le=1, description="share of each task vector's entries that is kept, 0-1")
    scope: Scope = Field("model", description="over what the largest are chosen, as in ties")
    weights: dict[str, FiniteFloat] | None = Field(None, description=_WEIGHTS)


class IsoCConfig(Strict):
    """Isotropic merging in the common subspace: the summed task vectors with a flat spectrum.

    Marczak et al. 2025, algorithm 1.
    """

    name: Literal["iso-c"] = "iso-c"
    tolerance: float = Field(1e-6, ge=0, lt=1, description=_TOLERANCE)
    weights: dict[str, FiniteFloat] | None = Field(None, description=_WEIGHTS)
    others: Others = Field("mean", description=_OTHERS)
    embeddings: Embeddings = Field("matrix", description=_EMBEDDINGS)


class TsvMConfig(Strict):
    """Task singular vectors: the experts' leading singular vectors, whitened together (Gargiulo et al. 2025)."""

    name: Literal["tsv-m"] = "tsv-m"
    tolerance: float = Field(1e-6, ge=0, lt=1, description=_TOLERANCE)
    weights: dict[str, FiniteFloat] | None = Field(None, description=_WEIGHTS + "; it scales the singular values")
    others: Others = Field("mean", description=_OTHERS)
    embeddings: Embeddings = Field("matrix", description=_EMBEDDINGS)


class RegMeanConfig(Strict):
    """Linear layers whose outputs are nearest to the experts' on their own inputs (Jin et al. 2023, equation 2)."""

    name: Literal["regmean"] = "regmean"
    shrink: float = Field(
        0.9, ge=0, le=1, description="share of the Gram matrices' off-diagonal that is kept, 0-1 (the paper's alpha)"
    )
    ridge: float = Field(
        1e-6, ge=0, le=1, description="added to the summed Gram's diagonal, as a share of it; pulls towards the mean"
    )
    weights: dict[str, Share] | None = Field(None, description=_SHARES)
    others: Literal["mean", "base"] = Field(
        "mean", description="what has no Gram matrix (norms, biases, embeddings) gets: mean, or base (as it is)"
    )


MethodConfig = Annotated[
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
    | RegMeanConfig,
    Field(discriminator="name"),
]
METHOD_CONFIGS: dict[str, type[Strict]] = {
    "average": AverageConfig,
    "linear": LinearConfig,
    "task_arithmetic": TaskArithmeticConfig,
    "slerp": SlerpConfig,
    "ties": TiesConfig,
    "dare": DareConfig,
    "dare-ties": DareTiesConfig,
    "ties-split": TiesSplitConfig,
    "iso-c": IsoCConfig,
    "tsv-m": TsvMConfig,
    "regmean": RegMeanConfig,
}

LINEAR_METHODS = (
    "task_arithmetic",
    "dare",
    "ties-split",
    "tsv-m",
)  # sums of one part per expert, so that each can be scaled
INPUT_METHODS = ("regmean",)  # need inputs of every expert, so that each must have a task
