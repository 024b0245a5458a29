"""Settings of the methods that weigh experts by statistics of their data: Fisher, MaTS, LED, Sens-Merging."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from optmerge.config.methods.base import SHARES, WEIGHTS, Facts, MethodSettings, Share, searched

Density = Annotated[FiniteFloat, Field(ge=0, le=1)]


class FisherConfig(MethodSettings):
    """The mean of the experts in which every entry counts by its Fisher information (Matena and Raffel 2022).

    Section 3, equation 4: sum_i w_i F_i theta_i / sum_i w_i F_i, with F_i the diagonal of expert i's Fisher matrix on
    its own predictions, divided by its norm, and no smaller than a floor. The base is no part of it.
    """

    facts = Facts(
        paper="Matena and Raffel 2022",
        cost="a pass back per input and class of each expert, two passes over the weights",
        needs=("fisher",),
    )
    name: Literal["fisher"] = "fisher"
    floor: float = Field(
        1e-6,
        gt=0,
        le=1,
        description="smallest Fisher information that counts, once divided by its norm; where no gradient comes, the "
        "mean is left",
        json_schema_extra=searched(1e-10, 1e-3, log=True, grid=(1e-8, 1e-6)),
    )
    normalize: bool = Field(
        True, description="divide each expert's Fisher information by its L2 norm over the whole model"
    )
    weights: dict[str, Share] | None = Field(None, description=SHARES)


class MatsConfig(MethodSettings):
    """Task vectors matched in the experts' own subspaces, by conjugate gradients (Tam et al. 2023).

    Section 4: sum_i w_i A_i vec(W) = sum_i w_i A_i vec(W_i) for every linear layer, with A_i the Gram matrix of its
    inputs, or that times the one of the gradients by its outputs (K-FAC). It is not solved to the end: what a few steps
    do not reach stays where they began.
    """

    facts = Facts(
        paper="Tam et al. 2023",
        cost="passes forward and back over the inputs per expert, then 4K products per layer and step",
        needs=("grams", "output-grams"),
    )
    name: Literal["mats"] = "mats"
    objective: Literal["kfac", "grams"] = Field(
        "kfac",
        description="kfac: inputs' Gram matrix times the output gradients', a block of the Fisher matrix; grams: the "
        "inputs' alone, which is RegMean's objective and needs no gradient",
    )
    iterations: int = Field(
        100, ge=0, le=10_000, description="most steps", json_schema_extra=searched(1, 200, log=True, grid=(10, 50, 100))
    )
    tolerance: float = Field(
        1e-5, ge=0, lt=1, description="stop when the residual is this share of what it is for the base"
    )
    start: FiniteFloat = Field(
        0.3,
        description="coefficient of the summed task vectors at which it starts; 0 is the base",
        json_schema_extra=searched(0.0, 1.0, grid=(0.0, 0.2, 0.3, 0.5)),
    )
    shrink: float = Field(
        1.0,
        ge=0,
        le=1,
        description="share of the matrices' off-diagonal that is kept, 0-1",
        json_schema_extra=searched(0.1, 1.0, grid=(0.1, 0.3, 0.5, 0.7, 0.9, 1.0)),
    )
    weights: dict[str, Share] | None = Field(None, description=SHARES)
    others: Literal["mean", "base"] = Field(
        "mean",
        description="what lacks a matrix (norms, biases, embeddings, large heads) gets: mean, or base (as it is)",
    )


class LedConfig(MethodSettings):
    """Task vectors where one expert alone, and the base on its task, find an entry important (Ma et al. 2025, LED).

    Locate: the mean of |theta dL/dtheta| on labelled examples, of the base and of the expert. Elect: what is among the
    largest of both, per tensor. Disjoin: what more than one expert elects is nobody's and stays the base's.
    """

    facts = Facts(
        paper="Ma et al. 2025",
        cost="two passes back per labelled example of each expert, one pass over the weights",
        linear=True,
        needs=("saliency", "base-saliency"),
        labels=True,
    )
    name: Literal["led"] = "led"
    density: float = Field(
        0.4,
        ge=0,
        le=1,
        description="share of a tensor's entries that counts as important, 0-1",
        json_schema_extra=searched(0.05, 0.6, grid=(0.1, 0.3, 0.4, 0.5)),
    )
    densities: dict[str, Density] | None = Field(
        None, description="expert's name -> its own share; null, or an expert left out = density"
    )
    weights: dict[str, FiniteFloat] | None = Field(None, description=WEIGHTS)


class SensConfig(MethodSettings):
    """Task vectors weighed layer by layer by a softmax of how sensitive each expert is (Liu et al. 2025, Sens-Merging).

    The authors have published no code and this follows a re-implementation by others: an expert's score in a layer is
    its share of sensitivity there, times its model's mean distance of logits from the other experts on their tasks.
    Which sign that distance has is not certain.
    """

    facts = Facts(
        paper="Liu et al. 2025",
        cost="a pass back per labelled example and K forward passes over all inputs, one pass over the weights",
        scale=0.7,
        linear=True,
        needs=("saliency", "logit-distance"),
        labels=True,
    )
    name: Literal["sens"] = "sens"
    temperature: float = Field(
        2.0,
        gt=0,
        description="of the softmax over experts; the larger, the nearer to task arithmetic",
        json_schema_extra=searched(0.05, 10.0, log=True, grid=(2.0, 3.0, 6.0)),
    )
    favour: Literal["far", "near"] = Field(
        "far",
        description="who gets more: models far from the other experts in logits (as in the re-implementation), or near",
    )
    weights: dict[str, FiniteFloat] | None = Field(None, description=WEIGHTS)


StatisticalConfig = FisherConfig | MatsConfig | LedConfig | SensConfig
