"""Settings of the drivers, one model per name; the classes themselves are in ``optmerge.drivers``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

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
    covariance: Literal["auto", "full", "diagonal"] = Field(
        "auto", description="what is learnt of the variables; auto = diagonal from 200 variables on, full below"
    )
    scale: Literal["none", "norms"] = Field(
        "none",
        description="standard deviations at the start: the same for all, or inversely proportional to the norm of the "
        "task vectors that a variable scales (norms), so that a step moves the model as far along each",
    )
    known: int = Field(
        3, ge=0, description="the best baselines inside the space that enter the first generation, half of it at most"
    )
    restarts: int = Field(
        0, ge=0, description="fresh starts with twice the population when the search has converged (IPOP); 0 = stop"
    )


class OptunaConfig(Strict):
    """Optuna's samplers; trials are replayed from the trajectory, so the study is never the truth."""

    name: Literal["optuna"] = "optuna"
    sampler: Literal["tpe", "gp", "random", "sobol"] = Field(
        "tpe",
        description="which sampler proposes; gp (a Gaussian process) is for some dozen variables and some hundred "
        "trials; gp and sobol need scipy",
    )
    startup: int = Field(
        10, ge=1, description="random trials (after the start and the known recipes) before tpe or gp model anything"
    )
    multivariate: bool = Field(True, description="TPE models the variables jointly")
    group: bool = Field(
        False,
        description="TPE has a joint model for every set of variables that trials share, all of them in one search; "
        "needs multivariate",
    )
    known: int = Field(3, ge=0, description="the best baselines inside the space that are the first trials")

    @model_validator(mode="after")
    def _group_is_multivariate(self) -> Self:
        if self.group and not self.multivariate:
            raise ValueError("group divides the model of multivariate; set multivariate to true, or leave group out")
        return self


DriverConfig = Annotated[AdamConfig | CmaConfig | OptunaConfig, Field(discriminator="name")]
DRIVER_CONFIGS: dict[str, type[Strict]] = {"adam": AdamConfig, "cma": CmaConfig, "optuna": OptunaConfig}
GRADIENT_DRIVERS = frozenset({"adam"})  # these follow the gradient of the objective
NO_GRADIENT_DRIVERS = tuple(name for name in DRIVER_CONFIGS if name not in GRADIENT_DRIVERS)
