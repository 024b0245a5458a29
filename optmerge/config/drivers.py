"""Settings of the drivers, one model per name; the classes themselves are in ``optmerge.drivers``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from optmerge.config.base import Strict


class AdamConfig(Strict):
    """Adam on the exact gradient of the objective with respect to the coefficients (Kingma & Ba 2015, algorithm 1)."""

    name: Literal["adam"] = "adam"
    lr: float = Field(0.02, gt=0, description="step size, in units of a coefficient")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the gradient's running mean")
    beta2: float = Field(0.999, ge=0, lt=1, description="decay of the squared gradient's running mean")
    eps: float = Field(1e-8, gt=0, description="added to the root of the second moment")
    batch: int | None = Field(None, ge=1, description="fit examples per task and step; null = all of them")
    bound: Literal["project", "clamp"] = Field(
        "project",
        description="a variable that a step takes out of its bounds is put back (project), or goes on outside while "
        "its coefficient stays at the bound, with no gradient (clamp, AdaMerging's); project is better, since what is "
        "outside comes back by momentum only",
    )
    schedule: Literal["constant", "cosine"] = Field("constant", description="step size over the evaluation budget")


class CmaConfig(Strict):
    """CMA-ES by pycma's ask/tell interface (Hansen 2016)."""

    name: Literal["cma"] = "cma"
    sigma: float = Field(0.1, gt=0, description="initial step size, in units of a coefficient")
    population: int | None = Field(None, ge=2, description="candidates per generation; null = 4 + floor(3 ln d)")
    diagonal: bool | Literal["auto"] = Field("auto", description="diagonal covariance; auto = from 200 variables on")


class OptunaConfig(Strict):
    """Optuna's samplers; trials are replayed from the trajectory, so the study is never the truth."""

    name: Literal["optuna"] = "optuna"
    sampler: Literal["tpe", "random"] = Field("tpe", description="which sampler proposes")
    startup: int = Field(10, ge=1, description="random trials (after the start point) before TPE models anything")
    multivariate: bool = Field(True, description="TPE models the variables jointly")


DriverConfig = Annotated[AdamConfig | CmaConfig | OptunaConfig, Field(discriminator="name")]
DRIVER_CONFIGS: dict[str, type[Strict]] = {"adam": AdamConfig, "cma": CmaConfig, "optuna": OptunaConfig}
GRADIENT_DRIVERS = frozenset({"adam"})  # these follow the gradient of the objective
NO_GRADIENT_DRIVERS = tuple(name for name in DRIVER_CONFIGS if name not in GRADIENT_DRIVERS)
