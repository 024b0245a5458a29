"""What samplers of several objectives need of an objective: that everything in it belongs to a task.

problem = not_of_a_task({"name": "optuna", "sampler": "nsga2"}, ["expert-kl", "l2"])    # a sentence, or None
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optmerge.config.objectives import TERM_CONFIGS

SAMPLERS = ("nsga2", "nsga3", "motpe")


def not_of_a_task(driver: Mapping[str, Any], terms: Sequence[str]) -> str | None:
    """Why a driver that minimises each task's part would not see all of an objective; None where it would.

    Args:
        driver: Its settings as plain data.
        terms: Names of the objective's terms.
    """
    sampler = driver.get("sampler")
    if driver.get("name") != "optuna" or sampler not in SAMPLERS:
        return None
    unseen = [name for name in terms if name in TERM_CONFIGS and TERM_CONFIGS[name].about != "model"]
    if not unseen:
        return None
    return (
        f"driver.sampler is {sampler}, which minimises each task's part of the objective, and {' and '.join(unseen)} "
        "is a part of no task, so it would not be seen. Take it out of objective.terms, or use a sampler of one value "
        "(tpe, gp) or the driver cma."
    )
