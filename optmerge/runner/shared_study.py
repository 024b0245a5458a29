"""Which study a search works on with others: equal searches find the same one by themselves.

check_study(config.driver)                               # the database answers, before any model is loaded
driver = named_study(config.driver, problem, stage=0)    # driver.study is a name
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from optmerge.config.base import Strict
from optmerge.config.drivers import OptunaConfig
from optmerge.runner.terms import term_hashes

if TYPE_CHECKING:
    from optmerge.runner.problem import Problem


def check_study(driver: Strict) -> None:
    """Open and close the database that a driver names, so that a mistake is found before the work begins.

    Raises:
        ConfigError: It cannot be opened.
    """
    if isinstance(driver, OptunaConfig) and driver.storage is not None:
        from optmerge.drivers.study_storage import open_storage

        open_storage(driver).engine.dispose()


def named_study(driver: Strict, problem: Problem, *, stage: int) -> Strict:
    """The driver's settings with a name for its study, where it shares one; stages of a schedule have one each.

    Where the search file gives no name it is a hash of what a trial's value depends on: the content of models and data,
    the examples of the splits, the objective, the variables with their bounds, and the number type. Driver, budget and
    paths are not in it.
    """
    if not isinstance(driver, OptunaConfig) or driver.storage is None:
        return driver
    name = driver.study or f"optmerge-{search_hash(problem)}"
    return driver.model_copy(update={"study": f"{name}-stage-{stage + 1}" if stage else name})


def search_hash(problem: Problem) -> str:
    """16 hexadecimal digits that equal searches share."""
    family, space = problem.family, problem.space
    content = {
        "models": [family.base.sha256(), *(family.experts[name].sha256() for name in problem.config.experts)],
        "directions": [direction.name for direction in problem.directions],
        "data": {name: data.sha256 for name, data in problem.calibration.tasks.items()},
        "objective": problem.config.objective.model_dump(mode="json"),
        "terms": term_hashes(problem.config.objective, problem.objective),
        "variables": list(space.names.compact),
        "bounds": [space.lower.tolist(), space.upper.tolist()],
        "dtype": str(problem.dtype),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
