"""Settings of the drivers that follow the gradient of the objective with respect to the coefficients."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from optmerge.config.base import Strict


class StepConfig(Strict):
    """What drivers that make one step a gradient have in common."""

    lr: float = Field(0.02, gt=0, description="step size, in units of a coefficient")
    batch: int | None = Field(None, ge=1, description="fit examples per task and step; null = all of them")
    bound: Literal["project", "clamp"] = Field(
        "project",
        description="a variable that a step takes out of its bounds is put back (project), or goes on outside while "
        "its coefficient stays at the bound, with no gradient (clamp, AdaMerging's); project is better, since what is "
        "outside comes back by momentum only",
    )
    schedule: Literal["constant", "cosine", "linear"] = Field(
        "constant", description="step size over the evaluation budget; cosine and linear end at 0"
    )
    clip: float | None = Field(
        None, gt=0, description="a gradient of a larger Euclidean norm is shortened to this one; null = never"
    )


class AdamConfig(StepConfig):
    """Adam on the exact gradient of the objective with respect to the coefficients (Kingma & Ba 2015, algorithm 1)."""

    name: Literal["adam"] = "adam"
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the gradient's running mean")
    beta2: float = Field(0.999, ge=0, lt=1, description="decay of the squared gradient's running mean")
    eps: float = Field(1e-8, gt=0, description="added to the root of the second moment")


class AdamWConfig(StepConfig):
    """Adam with a pull on the variables beside the gradient (Loshchilov & Hutter 2019, algorithm 2)."""

    name: Literal["adamw"] = "adamw"
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the gradient's running mean")
    beta2: float = Field(0.999, ge=0, lt=1, description="decay of the squared gradient's running mean")
    eps: float = Field(1e-8, gt=0, description="added to the root of the second moment")
    weight_decay: float = Field(
        0.01, ge=0, description="a step takes lr times this share of the distance to where decay_to says"
    )
    decay_to: Literal["zero", "start"] = Field(
        "zero", description="where variables are pulled: to zero (the base model), or to the start of the search"
    )


class SgdConfig(StepConfig):
    """Gradient descent with momentum (Polyak 1964; Nesterov 1983 in the form of Sutskever et al. 2013)."""

    name: Literal["sgd"] = "sgd"
    lr: float = Field(0.1, gt=0, description="step size: the change of a coefficient per unit of its gradient")
    momentum: float = Field(0.9, ge=0, lt=1, description="what is left of the last step's velocity")
    nesterov: bool = Field(False, description="take the gradient as if the next step of the velocity were made")


class LbfgsConfig(Strict):
    """L-BFGS with a line search, on the whole fit split (Nocedal 1980), projected to bounds (Bertsekas 1982)."""

    name: Literal["lbfgs"] = "lbfgs"
    step: float = Field(0.1, gt=0, description="largest change of a coefficient in the first step")
    memory: int = Field(10, ge=1, description="steps whose curvature is remembered")
    line_search: Literal["strong-wolfe", "backtracking"] = Field(
        "strong-wolfe",
        description="a step is accepted when the value fell enough (backtracking), and besides its slope flattened "
        "(strong-wolfe); every trial is an evaluation",
    )
    trials: int = Field(12, ge=1, description="trials in one line search before it is given up")
    tolerance: float = Field(
        1e-8, ge=0, description="stop when no coefficient would move further than this by a step along the gradient"
    )


class LevenbergMarquardtConfig(Strict):
    """Levenberg-Marquardt for few variables, with the Gauss-Newton matrix (Marquardt 1963; Nielsen 1999).

    A step over d variables counts d + 1 evaluations of the budget.
    """

    name: Literal["levenberg-marquardt"] = "levenberg-marquardt"
    damping: float = Field(0.01, gt=0, description="first damping, times the matrix's largest diagonal entry")
    tolerance: float = Field(
        1e-8, ge=0, description="stop when no coefficient would move further than this by a step along the gradient"
    )
