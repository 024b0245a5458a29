"""Settings of the methods that merge layer by layer: RegMean++."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from optmerge.config.methods.base import SHARES, Facts, MethodSettings, Share, searched


class RegMeanPlusPlusConfig(MethodSettings):
    """RegMean whose layers see inputs that came through the layers merged so far.

    Nguyen et al. 2025, section 3: what a layer is given in the merged model, and not what it was given in the expert.
    """

    facts = Facts(
        paper="Nguyen et al. 2025",
        cost="two passes over the inputs per expert, one solve per layer",
        needs=("merged-grams",),
    )
    name: Literal["regmean++"] = "regmean++"
    shrink: float = Field(
        0.95,
        ge=0,
        le=1,
        description="share of the Gram matrices' off-diagonal that is kept, 0-1 (the paper's alpha)",
        json_schema_extra=searched(0.1, 1.0, grid=(0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 1.0)),
    )
    ridge: float = Field(
        1e-6, ge=0, le=1, description="added to the summed Gram's diagonal, as a share of it; pulls towards the mean"
    )
    weights: dict[str, Share] | None = Field(None, description=SHARES)
    others: Literal["mean", "base"] = Field(
        "mean", description="what has no Gram matrix (norms, biases, embeddings) gets: mean, or base (as it is)"
    )


LayerwiseConfig = RegMeanPlusPlusConfig
