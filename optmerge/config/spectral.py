"""Settings of spectral directions: bands of singular components, each with coefficients of its own."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from optmerge.config.base import Strict
from optmerge.config.methods import MethodConfig


class SpectralConfig(Strict):
    """Bands of the singular components of every matrix, each a direction (AdaRank's masks, by bands).

    Lee et al. 2026 ("AdaRank") learn which components of each task vector take part; here bands of components get
    coefficients, which are 0 or 1 in the space `adarank` and any number elsewhere.
    """

    name: Literal["spectral"] = "spectral"
    of: Literal["task_arithmetic", "tsv-m", "iso-c"] = Field(
        "task_arithmetic",
        description="what is divided: each expert's task vector in its own singular basis (task_arithmetic), what "
        "TSV-M makes of it in the frame that the experts share (tsv-m), or Iso-C's delta, which is of no one expert "
        "(iso-c)",
    )
    bands: int = Field(4, ge=2, le=64, description="how many, from the largest singular values to the smallest")
    divide: Literal["energy", "count"] = Field(
        "energy", description="bands of equal energy (sum of squared singular values), or of equally many components"
    )
    scale: FiniteFloat = Field(
        1.0, gt=0, description="the size of all bands: a coefficient of 1 adds this much of what is divided"
    )
    embeddings: Literal["whole", "matrix"] = Field(
        "whole",
        description="embeddings and heads: whole = undivided in the first band, as what is no matrix; matrix = divided "
        "like any matrix, which takes long for large vocabularies",
    )

    @property
    def by_expert(self) -> bool:
        """Whether every expert has bands of its own."""
        return self.of != "iso-c"


DirectionConfig = Annotated[MethodConfig | SpectralConfig, Field(discriminator="name")]
DIRECTION_CONFIGS: dict[str, type[Strict]] = {"spectral": SpectralConfig}
"""Directions that are no merging methods."""
