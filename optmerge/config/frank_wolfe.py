"""Settings of the Frank-Wolfe driver."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from optmerge.config.base import Strict


class FrankWolfeConfig(Strict):
    """Frank-Wolfe in the hull of base, experts and start (Frank & Wolfe 1956; Jaggi 2013; Chen et al. 2025)."""

    name: Literal["frank-wolfe"] = "frank-wolfe"
    variant: Literal["hard", "soft"] = Field(
        "soft",
        description="hard moves towards the expert that the gradient points at; soft takes it into a set of experts "
        "and moves all of their weights",
    )
    oracle: Literal["layer-wise", "task-wise"] = Field(
        "layer-wise", description="an expert for each of the space's tensor groups, or one for all of them"
    )
    step: Literal["backtracking", "open-loop"] = Field(
        "backtracking",
        description="how far a step goes: as far as the value falls enough, every trial being an evaluation "
        "(Pedregosa et al. 2020), or 2 / (t + 2) whatever it does, the first time all the way (hard only)",
    )
    scale: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="an expert's coefficient at its vertex; a group's sum to no more"
    )
    top: int = Field(1, ge=1, description="experts that enter the set at a time, for every group (soft)")
    corrections: int = Field(5, ge=1, description="steps of the weights before the oracle is asked again (soft)")
    tolerance: float = Field(
        1e-8, ge=0, allow_inf_nan=False, description="stop when the oracle promises no larger fall of the value"
    )

    @model_validator(mode="after")
    def _open_loop_is_hard(self) -> Self:
        if self.step == "open-loop" and self.variant == "soft":
            raise ValueError(
                "step: open-loop is that of the hard variant; set variant to hard, or step to backtracking"
            )
        return self
