"""Settings of the driver cma."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from optmerge.config.base import Strict


class CmaConfig(Strict):
    """CMA-ES by pycma's ask/tell interface (Hansen 2016)."""

    name: Literal["cma"] = "cma"
    sigma: float = Field(0.1, gt=0, description="initial step size, in units of a coefficient")
    population: int | None = Field(
        None,
        ge=2,
        description="candidates per generation; null = 4 + floor(3 ln d), or floor(6 + 3 ln(d i)) where i of the "
        "variables take whole numbers",
    )
    covariance: Literal["auto", "full", "diagonal"] = Field(
        "auto", description="what is learnt of the variables; auto = diagonal from 200 variables on, full below"
    )
    scale: Literal["none", "norms", "fisher"] = Field(
        "none",
        description="standard deviations at the start: the same for all, or inversely proportional to the norm of the "
        "task vectors that a variable scales (norms), so that a step moves the model as far along each, or to the root "
        "mean square of the objective's gradients by a variable (fisher), which a stage with a gradient driver before "
        "this one has measured",
    )
    bounds: Literal["transform", "fold"] = Field(
        "transform",
        description="how samples get within bounds: by a smooth map that CMA-ES knows of, or folded at the lower bound "
        "without its knowledge, as mergekit-evolve takes absolute values of weights",
    )
    known: int = Field(
        3, ge=0, description="the best baselines inside the space that enter the first generation, half of it at most"
    )
    restarts: int = Field(
        0, ge=0, description="fresh starts with twice the population when the search has converged (IPOP); 0 = stop"
    )
    batch: int | None = Field(
        None,
        ge=1,
        description="fit examples per task and generation, the same ones for all its candidates; null = all of them",
    )
    noise: Literal["grow", "keep"] = Field(
        "grow",
        description="with batch: grow judges some candidates of every generation on a second batch, and takes more "
        "examples where that changes their ranks (UH-CMA-ES, Hansen et al. 2009) and fewer again, down to batch, where "
        "it does not; each costs an evaluation",
    )
