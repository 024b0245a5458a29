"""Settings of the methods of geometry: points on a sphere, shrinking by angles, and tensors taken as they are."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from optmerge.config.methods.base import COMPAT, SHARES, Compat, Facts, MethodSettings, Share, searched

Origin = Literal["base", "zero"]
Along = Literal["tensor", "row", "column"]

ORIGIN = "centre of the sphere: base = task vectors are averaged, zero = the models' weights themselves"


class NuSlerpConfig(MethodSettings):
    """Spherical interpolation of two experts' task vectors, or of their weights, whole or row by row.

    Shoemake 1985, section 3.3; the name and the choices are those of mergekit (Goddard et al. 2024).
    """

    facts = Facts(paper="Goddard et al. 2024", cost="two passes over the weights", mergekit="nuslerp", experts=(2, 2))
    name: Literal["nuslerp"] = "nuslerp"
    t: float = Field(
        0.5,
        ge=0,
        le=1,
        description="where between the two, 0-1: 0 = the first, 1 = the second (its share of mergekit's weights)",
        json_schema_extra=searched(0.0, 1.0),
    )
    origin: Origin = Field("base", description=ORIGIN)
    scope: Along = Field(
        "tensor",
        description="what has an angle: tensor, row (inputs of one output) or column (what one input goes to)",
    )
    compat: Compat = Field("paper", description=COMPAT)


class MultiSlerpConfig(MethodSettings):
    """One step towards the spherical mean of any number of experts; of two it is the SLERP of their weights.

    The step is that of Buss and Fillmore 2001, algorithm A1; the name is mergekit's (Goddard et al. 2024).
    """

    facts = Facts(paper="Goddard et al. 2024", cost="two passes over the weights", mergekit="multislerp")
    name: Literal["multislerp"] = "multislerp"
    weights: dict[str, Share] | None = Field(None, description=SHARES + "; they are divided by their sum")
    origin: Origin = Field("base", description=ORIGIN)
    compat: Compat = Field("paper", description=COMPAT)


class KarcherConfig(MethodSettings):
    """The spherical mean of the experts: the direction with the least mean squared angle to theirs.

    Karcher 1977; found by gradient steps, Buss and Fillmore 2001, algorithm A1.
    """

    facts = Facts(paper="Karcher 1977", cost="two passes over the weights", mergekit="karcher")
    name: Literal["karcher"] = "karcher"
    weights: dict[str, Share] | None = Field(None, description=SHARES + "; they are divided by their sum")
    origin: Origin = Field("zero", description=ORIGIN)
    iterations: int | None = Field(
        None, ge=0, le=10_000, description="most steps, which cost next to nothing; null = 100, by mergekit 10"
    )
    tolerance: float | None = Field(
        None, ge=0, lt=1, description="a step shorter than this, in radians, ends it; null = 1e-9, by mergekit 1e-5"
    )
    compat: Compat = Field("paper", description=COMPAT)


class ModelStockConfig(MethodSettings):
    """The mean of the experts, drawn towards the base by the angle between their task vectors.

    Jang et al. 2024, equation 7.
    """

    facts = Facts(
        paper="Jang et al. 2024", cost="two passes over the weights", mergekit="model_stock", experts=(2, None)
    )
    name: Literal["model_stock"] = "model_stock"
    average: Literal["cosine", "angle"] = Field(
        "cosine", description="of the pairs of three experts or more, what is averaged: their cosines, or their angles"
    )
    scope: Literal["tensor", "row"] = Field(
        "tensor", description="what has an angle: tensor, or row (inputs of one output; a filter of a convolution)"
    )
    compat: Compat = Field("paper", description=COMPAT)


class PassthroughConfig(MethodSettings):
    """One expert's tensors as they are; by name or role also another's, or those of the base.

    The stitching of layers of different models, as in mergekit's passthrough (Goddard et al. 2024).
    """

    facts = Facts(paper="Goddard et al. 2024", cost="one pass over the weights", linear=True, mergekit="passthrough")
    name: Literal["passthrough"] = "passthrough"
    expert: str | None = Field(None, description="whose tensors are taken; null = those of the first expert, or `base`")
    take: dict[str, str] = Field(
        default_factory=dict,
        description="glob over parameter names, or a role (embedding, attention, mlp, norm, final-norm, head, other) "
        "-> the expert whose tensors these are, or `base`; the last that matches wins",
    )


GeometricConfig = NuSlerpConfig | MultiSlerpConfig | KarcherConfig | ModelStockConfig | PassthroughConfig
