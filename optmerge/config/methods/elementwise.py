"""Settings of the methods that treat every entry by itself: Breadcrumbs, DELLA, PCB, SCE, VaRM and MetaGPT."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from optmerge.config.methods.base import (
    COMPAT,
    SHARES,
    WEIGHTS,
    Compat,
    Facts,
    MethodSettings,
    Scope,
    Share,
    searched,
)


class _Breadcrumbs(MethodSettings):
    """What both Breadcrumbs have in common."""

    density: float = Field(
        0.15,
        ge=0,
        le=1,
        description="share of the entries that is kept of each task vector, beside the outliers, 0-1 (beta)",
        json_schema_extra=searched(0.05, 0.9, log=True, grid=(0.05, 0.1, 0.15, 0.2, 0.9)),
    )
    outliers: float = Field(
        0.006,
        ge=0,
        lt=1,
        description="share of the entries, the largest ones, that is removed, 0 up to (not with) 1 (gamma)",
        json_schema_extra=searched(0.0, 0.02, grid=(0.001, 0.004, 0.006, 0.008, 0.01)),
    )
    scope: Scope | None = Field(
        None, description="over what the largest are chosen, as in ties; null = row by the paper, tensor by mergekit"
    )
    compat: Compat = Field("paper", description=COMPAT)


class BreadcrumbsConfig(_Breadcrumbs):
    """Keep the middle: drop each task vector's largest and its small entries, and add up (Davari & Belilovsky 2024).

    "Model Breadcrumbs", by the rule of its code: of a row of n entries the floor(gamma n) largest are
    removed, and of what is left the floor(beta n) largest are kept.
    """

    facts = Facts(
        paper="Davari & Belilovsky 2024",
        cost="one pass over the weights, a sort per row",
        scale=0.2,
        linear=True,
        alone=True,
        mergekit="breadcrumbs",
    )
    name: Literal["breadcrumbs"] = "breadcrumbs"
    weights: dict[str, FiniteFloat] | None = Field(None, description=WEIGHTS)


class BreadcrumbsTiesConfig(_Breadcrumbs):
    """Breadcrumbs, of which TIES then keeps what has the elected sign (mergekit's breadcrumbs_ties).

    No paper has it: Davari & Belilovsky 2024 for what is dropped, Yadav et al. 2023 (algorithm 1) for the election.
    """

    facts = Facts(
        paper="Davari & Belilovsky 2024, Yadav et al. 2023",
        cost="one pass over the weights, a sort per row",
        mergekit="breadcrumbs_ties",
    )
    name: Literal["breadcrumbs-ties"] = "breadcrumbs-ties"
    normalize: bool = Field(False, description="divide by the weights of what was kept (mean); false = sum")
    weights: dict[str, Share] | None = Field(None, description=SHARES)


class _Della(MethodSettings):
    """What both DELLA have in common."""

    drop: float = Field(
        0.3,
        ge=0,
        lt=1,
        description="mean probability that an entry is dropped, 0 up to (not with) 1",
        json_schema_extra=searched(0.1, 0.9, grid=(0.1, 0.3, 0.5, 0.7, 0.9)),
    )
    epsilon: float = Field(
        0.07,
        ge=0,
        lt=0.5,
        description="the probability goes from drop + epsilon for a row's smallest entry to drop - epsilon for its "
        "largest (half of the code's window_size); both must be probabilities, 0 included and 1 not",
        json_schema_extra=searched(0.0, 0.09),
    )
    rescale: bool = Field(
        True,
        description="make up for what was dropped: each entry by 1/its probability to stay, or by mergekit's L1 norm",
    )
    seed: int = Field(0, ge=0, description="of the masks; an expert's mask of a tensor depends on no other tensor")
    compat: Compat = Field("paper", description=COMPAT)

    @model_validator(mode="after")
    def _probabilities(self) -> Self:
        if self.drop and not self.epsilon <= self.drop < 1 - self.epsilon:
            most = min(self.drop, 1 - self.drop)
            raise ValueError(
                f"drop {self.drop:g} and epsilon {self.epsilon:g} make probabilities from "
                f"{self.drop - self.epsilon:g} to {self.drop + self.epsilon:g}; expected 0 or more, and less than 1: "
                f"lower epsilon below {most:g}"
            )
        return self


class DellaConfig(_Della):
    """Drop small entries more often than large ones, rescale, elect a sign, average what agrees (Deep et al. 2024).

    DELLA's MagPrune, then its election and fusion; the settings are those of its code's example.
    """

    facts = Facts(
        paper="Deep et al. 2024", cost="one pass over the weights, a sort per row", scale=1.1, mergekit="della"
    )
    name: Literal["della"] = "della"
    normalize: bool = Field(True, description="divide by the weights of what was kept (mean); false = sum")
    weights: dict[str, Share] | None = Field(None, description=SHARES)


class DellaLinearConfig(_Della):
    """DELLA without its election: drop by rank within a row, rescale, and add up (Deep et al. 2024)."""

    facts = Facts(
        paper="Deep et al. 2024",
        cost="one pass over the weights, a sort per row",
        linear=True,
        alone=True,
        mergekit="della_linear",
    )
    name: Literal["della-linear"] = "della-linear"
    weights: dict[str, FiniteFloat] | None = Field(None, description=WEIGHTS)


class PcbConfig(MethodSettings):
    """Balance parameter competition: weigh every entry by its size and its agreement with the others (Du et al. 2024).

    PCB-Merging, as its code for the search of coefficients computes it: exp and tanh, not normalised over
    the entries, where the paper writes a softmax. The defaults are that code's.
    """

    facts = Facts(
        paper="Du et al. 2024", cost="five passes over the weights, K² tanh per entry", scale=1.2, linear=True
    )
    name: Literal["pcb"] = "pcb"
    density: float = Field(
        0.05,
        gt=0,
        le=1,
        description="share of each task vector's entries, those of the highest score, that is kept, above 0 up to 1",
        json_schema_extra=searched(0.02, 0.3, log=True, grid=(0.05, 0.1, 0.2)),
    )
    clip: float = Field(
        0.01, ge=0, lt=0.5, description="share of the magnitudes that is clipped at each end, 0 up to (not with) 0.5"
    )
    balance: Literal["normalized", "raw"] = Field(
        "normalized",
        description="agreement of an entry: normalized = sum of tanh of products of magnitudes between 0 and 1; raw = "
        "tanh of its product with the sum of all task vectors, which depends on their scale (the code's other version)",
    )
    weights: dict[str, FiniteFloat] | None = Field(None, description=WEIGHTS + "; it does not enter the scores")


class SceConfig(MethodSettings):
    """Select entries that vary, calculate each expert's share by its squares, erase minority signs (Wan et al. 2024).

    FuseChat's SCE: within every tensor, the entries whose variance over the experts is largest.
    """

    facts = Facts(paper="Wan et al. 2024", cost="seven passes over the weights", mergekit="sce")
    name: Literal["sce"] = "sce"
    density: float = Field(
        0.1,
        ge=0,
        le=1,
        description="share of a tensor's entries, of those on which the experts differ, that is selected, 0-1 "
        "(select_topk)",
        json_schema_extra=searched(0.05, 1.0, log=True, grid=(0.05, 0.1, 0.2, 0.5, 1.0)),
    )
    selected: Literal["everywhere", "shares"] = Field(
        "everywhere",
        description="what the selection is for: everywhere = only selected entries are merged; shares = they decide on "
        "the experts' shares, and all entries are merged (FuseChat's code)",
    )
    compat: Compat = Field("paper", description=COMPAT)


class VarmConfig(MethodSettings):
    """Weigh the experts, tensor by tensor, by the mean square of how far each has moved (Wan et al. 2024, VaRM).

    FuseChat's first report: the variation ratio of parameter matrices before and after fine-tuning.
    """

    facts = Facts(paper="Wan et al. 2024", cost="two passes over the weights", linear=True)
    name: Literal["varm"] = "varm"
    weights: dict[str, FiniteFloat] | None = Field(None, description=WEIGHTS + "; it does not enter the shares")


class MetaGptConfig(MethodSettings):
    """Task arithmetic with coefficients in closed form: each expert's share of the squared norms (Zhou et al. 2024).

    MetaGPT: lambda_i = |tau_i|^2 / sum_j |tau_j|^2, norms of whole task vectors.
    """

    facts = Facts(paper="Zhou et al. 2024", cost="two passes over the weights", linear=True)
    name: Literal["metagpt"] = "metagpt"
    weights: dict[str, FiniteFloat] | None = Field(None, description=WEIGHTS + "; it does not enter the shares")


ElementwiseConfig = (
    BreadcrumbsConfig
    | BreadcrumbsTiesConfig
    | DellaConfig
    | DellaLinearConfig
    | PcbConfig
    | SceConfig
    | VarmConfig
    | MetaGptConfig
)
