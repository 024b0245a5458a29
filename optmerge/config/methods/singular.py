"""Settings of the methods that work on singular values: STAR, Iso-CTS, Decom-Renorm-Merge, OPCM.

Iso-C and TSV-M, which every peer has, are in `optmerge.config.methods.basic`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, FiniteFloat

from optmerge.config.methods.base import (
    EMBEDDINGS,
    OTHERS,
    TOLERANCE,
    WEIGHTS,
    Embeddings,
    Facts,
    MethodSettings,
    Others,
    searched,
)


class StarConfig(MethodSettings):
    """Spectral truncation and rescaling: each task vector's leading components, with its nuclear norm; their mean.

    Lee et al. 2025, "STAR: Spectral Truncation and Rescale for Model Merging".
    """

    facts = Facts(paper="Lee et al. 2025", cost="K SVDs per matrix", linear=True)
    name: Literal["star"] = "star"
    share: float = Field(
        0.4,
        gt=0,
        le=1,
        description="components are kept until they reach this share of the sum of singular values, above 0 and up to "
        "1 (the paper's eta)",
        json_schema_extra=searched(0.2, 1.0, grid=(0.2, 0.3, 0.4, 0.5, 0.6, 0.7)),
    )
    tolerance: float = Field(1e-6, ge=0, lt=1, description=TOLERANCE)
    weights: dict[str, FiniteFloat] | None = Field(None, description=WEIGHTS)
    others: Others = Field("mean", description=OTHERS)
    embeddings: Embeddings = Field("matrix", description=EMBEDDINGS)


class IsoCtsConfig(MethodSettings):
    """Iso-C with room for every task: what the experts have in common and what is each one's own, with a flat spectrum.

    Marczak et al. 2025, "No Task Left Behind", algorithm 2.
    """

    facts = Facts(paper="Marczak et al. 2025", cost="K + 3 SVDs per matrix")
    name: Literal["iso-cts"] = "iso-cts"
    common: float = Field(
        0.8,
        ge=0,
        le=1,
        description="share of the ranks that the summed task vectors have, 0-1; the experts share the rest equally",
        json_schema_extra=searched(0.5, 1.0, grid=(0.5, 0.6, 0.7, 0.8, 0.9)),
    )
    tolerance: float = Field(1e-6, ge=0, lt=1, description=TOLERANCE)
    weights: dict[str, FiniteFloat] | None = Field(None, description=WEIGHTS)
    others: Others = Field("mean", description=OTHERS)
    embeddings: Embeddings = Field("matrix", description=EMBEDDINGS)


class DrmConfig(MethodSettings):
    """Decom-Renorm-Merge: TIES in a basis that the experts share, on rows of one length.

    Chaichana et al. 2025, "Decom-Renorm-Merge: Model Merging on the Right Space Improves Multitasking".
    """

    facts = Facts(paper="Chaichana et al. 2025", cost="one SVD per matrix, of all experts side by side", linear=True)
    name: Literal["drm"] = "drm"
    direction: Literal["horizontal", "vertical"] = Field(
        "horizontal",
        description="the basis that is shared: of the outputs (horizontal, DRM-H) or of the inputs (vertical, DRM-V)",
    )
    drop: float = Field(
        0.8,
        ge=0,
        le=1,
        description="share of the entries in the shared basis that is dropped, the smallest of all experts together",
        json_schema_extra=searched(0.3, 0.95, grid=(0.5, 0.6, 0.7, 0.8, 0.9)),
    )
    tolerance: float = Field(1e-2, ge=0, lt=1, description=TOLERANCE)
    weights: dict[str, FiniteFloat] | None = Field(
        None, description=WEIGHTS + "; it has no vote in the election of signs, and is not divided by"
    )
    others: Literal["ties", "mean", "sum", "base"] = Field(
        "ties",
        description="what is not a matrix gets: ties (mean of what has the elected sign), mean or sum of the task "
        "vectors, or base (it stays as it is)",
    )
    embeddings: Literal["ties", "matrix", "mean", "sum", "base"] = Field(
        "ties", description="what embeddings and heads get: matrix (treated like any matrix), ties, mean, sum or base"
    )


class OpcmConfig(MethodSettings):
    """One expert after the other, each without what would disturb the merge so far; in the end the experts' mean norm.

    Tang et al. 2025, "Merging Models on the Fly Without Retraining" (orthogonal projection-based continual merging).
    """

    facts = Facts(paper="Tang et al. 2025", cost="2 (K - 1) SVDs per matrix, two passes over the weights")
    name: Literal["opcm"] = "opcm"
    share: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="share of the merge so far (of its sum of singular values) whose directions are kept free of later "
        "experts, 0 up to (not with) 1 (the paper's alpha)",
        json_schema_extra=searched(0.1, 0.95, grid=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)),
    )
    order: list[str] | None = Field(
        None, description="names of all experts, in the order in which they are merged; null = as they are listed"
    )
    tolerance: float = Field(1e-6, ge=0, lt=1, description=TOLERANCE)
    embeddings: Embeddings = Field("sum", description=EMBEDDINGS)
    others: Others = Field("sum", description=OTHERS)


SingularConfig = StarConfig | IsoCtsConfig | DrmConfig | OpcmConfig
