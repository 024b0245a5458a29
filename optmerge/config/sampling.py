"""Settings of how a task's fit and select examples are drawn from its data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from optmerge.config.base import Strict


class RandomConfig(Strict):
    """By the hash of their content alone, which is as good as chance."""

    name: Literal["random"] = "random"


class DiverseConfig(Strict):
    """Representatives of a pool by facility location over the base model's embeddings (Mirzasoleiman et al. 2015).

    The pool is drawn like ``random``, is divided between fit and select in proportion to their sizes, and never touches
    the report split. No label is looked at.
    """

    name: Literal["diverse"] = "diverse"
    pool: int = Field(2000, ge=2, le=10_000, description="examples to choose from, fit and select together")
    duplicate: float = Field(
        0.95,
        gt=0,
        le=1,
        description="an example is left out if its cosine with an earlier one of the pool is above this",
    )


SamplingConfig = Annotated[RandomConfig | DiverseConfig, Field(discriminator="name")]
SAMPLING_CONFIGS: dict[str, type[Strict]] = {"random": RandomConfig, "diverse": DiverseConfig}
