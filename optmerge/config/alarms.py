"""Settings of the alarms; what they look at is in ``optmerge.runner.alarms``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from optmerge.config.base import Strict


class AlarmsConfig(Strict):
    """When a search counts as collapsed, and what happens then. A threshold is looked at task by task."""

    collapse: Literal["stop", "restore", "warn"] = Field(
        "stop",
        description="stop = end the search and keep the best iterate; restore = go back to it once, with a tenth of "
        "the step (drivers that follow a gradient), then stop; warn = only say so, and let such an iterate win",
    )
    agreement: float = Field(
        0.9,
        gt=0,
        le=1,
        description="a task that has lost agreement with its expert, to below this share of the start's, is looked at",
    )
    top_share: float = Field(
        0.2, gt=0, description="how far the share of the most frequent class exceeds the expert's in a collapse"
    )
    drift: float = Field(
        0.8, ge=0, le=1, description="warn when a task's agreement, as a share of the start's, is below this on select"
    )
    marginal_entropy: float = Field(
        0.5, ge=0, lt=1, description="entropy of the mean prediction, as a share of the expert's, that is too low"
    )
    gradient: float = Field(
        10.0, gt=1, description="warn when the gradient's norm exceeds the largest of the first five this many times"
    )
    at_bound: float = Field(0.9, gt=0, le=1, description="warn when this share of the variables stands at a bound")
