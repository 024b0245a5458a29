"""Settings of the drivers, one model per name; the classes themselves are in ``optmerge.drivers``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from optmerge.config.base import Strict
from optmerge.config.cma import CmaConfig as CmaConfig
from optmerge.config.frank_wolfe import FrankWolfeConfig as FrankWolfeConfig
from optmerge.config.gradient_drivers import AdamConfig as AdamConfig
from optmerge.config.gradient_drivers import AdamWConfig as AdamWConfig
from optmerge.config.gradient_drivers import LbfgsConfig as LbfgsConfig
from optmerge.config.gradient_drivers import LevenbergMarquardtConfig as LevenbergMarquardtConfig
from optmerge.config.gradient_drivers import SgdConfig as SgdConfig
from optmerge.config.natural_niches import NaturalNichesConfig as NaturalNichesConfig
from optmerge.config.storage_url import StorageUrl


class OptunaConfig(Strict):
    """Optuna's samplers; trials are replayed from the trajectory, unless several machines share a study."""

    name: Literal["optuna"] = "optuna"
    sampler: Literal["tpe", "gp", "random", "sobol", "nsga2", "nsga3", "motpe"] = Field(
        "tpe",
        description="which sampler proposes; gp (a Gaussian process) is for some dozen variables and some hundred "
        "trials; gp and sobol need scipy; nsga2, nsga3 and motpe (multi-objective TPE) minimise each task's part of "
        "the objective as one of its own and find a front of merges",
    )
    startup: int = Field(
        10,
        ge=1,
        description="random trials (after the start and the known recipes) before tpe, motpe or gp model anything",
    )
    population: int | None = Field(
        None, ge=4, description="trials in a generation of nsga2 and nsga3, the first of which is random; null = 20"
    )
    multivariate: bool = Field(True, description="TPE models the variables jointly")
    group: bool = Field(
        False,
        description="TPE has a joint model for every set of variables that trials share, all of them in one search; "
        "needs multivariate",
    )
    known: int = Field(3, ge=0, description="the best baselines inside the space that are the first trials")
    pruner: Literal["none", "wilcoxon", "successive-halving"] = Field(
        "none",
        description="whether a trial sees few examples first and is dropped there: wilcoxon compares its examples with "
        "the best trial's by a signed-rank test (needs scipy), successive-halving its value with other trials' on as "
        "many examples; an evaluation on a share of the examples counts as that share",
    )
    rungs: int = Field(
        3, ge=2, description="with a pruner, how many subsets of the examples a trial sees, the last all"
    )
    reduction: int = Field(
        4,
        ge=2,
        description="with a pruner, how many times as many examples each rung has as the one before; of the trials at "
        "a rung, successive-halving keeps one in so many",
    )
    p_value: float = Field(0.1, gt=0, lt=1, description="below which wilcoxon is sure that a trial is worse")
    storage: StorageUrl | None = Field(
        None,
        description="a database whose study several machines work on together, each in a run of its own: "
        "postgresql://, mysql://, or sqlite:/// for processes of one machine; null = a study of this run alone, which "
        "resumes exactly",
    )
    study: str | None = Field(
        None,
        min_length=1,
        description="with storage, the study's name; null = a hash of models, data, space and objective, so that equal "
        "searches meet",
    )
    heartbeat: int = Field(
        60,
        ge=1,
        description="with storage, seconds between the signs of life of a trial; one without any for three times as "
        "long is tried again by somebody else",
    )

    @model_validator(mode="after")
    def _group_is_multivariate(self) -> Self:
        if self.group and not self.multivariate:
            raise ValueError("group divides the model of multivariate; set multivariate to true, or leave group out")
        return self

    @model_validator(mode="after")
    def _several_machines(self) -> Self:
        if self.study is not None and self.storage is None:
            raise ValueError("study names a study of a storage, and there is none; give storage, or leave study out")
        if self.storage is not None and self.sampler in ("nsga2", "nsga3", "motpe"):
            raise ValueError(f"{self.sampler} works on a study of its own; leave storage out, or take another sampler")
        if self.pruner != "none" and (self.storage is not None or self.sampler in ("nsga2", "nsga3", "motpe")):
            other = "a storage" if self.storage is not None else self.sampler
            raise ValueError(f"pruner {self.pruner} compares one value within one run; leave it out, or {other}")
        return self


DriverConfig = Annotated[
    AdamConfig
    | AdamWConfig
    | SgdConfig
    | LbfgsConfig
    | LevenbergMarquardtConfig
    | CmaConfig
    | OptunaConfig
    | NaturalNichesConfig
    | FrankWolfeConfig,
    Field(discriminator="name"),
]
DRIVER_CONFIGS: dict[str, type[Strict]] = {
    "adam": AdamConfig,
    "adamw": AdamWConfig,
    "sgd": SgdConfig,
    "lbfgs": LbfgsConfig,
    "levenberg-marquardt": LevenbergMarquardtConfig,
    "cma": CmaConfig,
    "optuna": OptunaConfig,
    "natural-niches": NaturalNichesConfig,
    "frank-wolfe": FrankWolfeConfig,
}
# these follow the gradient of the objective
GRADIENT_DRIVERS = frozenset({"adam", "adamw", "sgd", "lbfgs", "levenberg-marquardt", "frank-wolfe"})
CURVATURE_DRIVERS = frozenset({"levenberg-marquardt"})  # and these its Gauss-Newton matrix
NO_GRADIENT_DRIVERS = tuple(name for name in DRIVER_CONFIGS if name not in GRADIENT_DRIVERS)
