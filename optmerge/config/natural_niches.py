"""Settings of the driver natural-niches."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from optmerge.config.base import Strict


class NaturalNichesConfig(Strict):
    """M2N2: an archive of merges that compete for fit examples (Abrantes, Lange & Tang 2025)."""

    name: Literal["natural-niches"] = "natural-niches"
    archive: int = Field(20, ge=2, description="individuals that are kept; the least fit one leaves for a fitter child")
    alpha: float = Field(
        1.0, ge=0, description="competition: what a fit example gives is divided by its crowd to this power; 0 = none"
    )
    attraction: bool = Field(
        True,
        description="the second parent is drawn by what it does well and the first does not; false: by its fitness",
    )
    split: bool = Field(
        True,
        description="a child changes its mixing ratio w to 1 - w at a random tensor group; false: it has one ratio",
    )
    mutation: float = Field(
        0.0, ge=0, description="standard deviation of the noise on every variable of a child, in units of a coefficient"
    )
    known: int = Field(
        0,
        ge=0,
        description="the best baselines inside the space that are seeds beside the start and each direction alone",
    )
