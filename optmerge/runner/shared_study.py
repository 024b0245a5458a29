"""Which study a search works on with others: equal searches find the same one by themselves.

check_study(config.driver)                               # the database answers, before any model is loaded
driver = named_study(config.driver, problem, stage=0)    # driver.study is a name
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from optmerge.config.base import Strict
from optmerge.config.drivers import OptunaConfig
from optmerge.runner.stages import chosen_examples
from optmerge.runner.terms import term_hashes

if TYPE_CHECKING:
    from optmerge.merging.recipe import Direction
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
    the examples of the splits and of the stage, the objective, what the directions are, how a vector becomes their
    coefficients, and the number type. Driver, budget and paths are not in it.
    """
    if not isinstance(driver, OptunaConfig) or driver.storage is None:
        return driver
    name = driver.study or f"optmerge-{search_hash(problem, stage=stage)}"
    return driver.model_copy(update={"study": f"{name}-stage-{stage + 1}" if stage else name})


def search_hash(problem: Problem, *, stage: int) -> str:
    """16 hexadecimal digits that equal searches share.

    Args:
        problem: As it is in the stage.
        stage: Which one, from 0.
    """
    family, space, config = problem.family, problem.space, problem.config
    tasks = problem.calibration.tasks
    content = {
        "models": [family.base.sha256(), *(family.experts[name].sha256() for name in config.experts)],
        "heads": [family.heads, *(problem.forward.head_sha256(task) for task in tasks)],
        "directions": [_identity(problem.directions[column]) for column in problem.columns],
        "data": {name: data.sha256 for name, data in tasks.items()},
        "examples": chosen_examples(
            problem.calibration.fit_sizes(), problem.stages[stage].settings.examples, seed=config.seed
        ),
        "objective": config.objective.model_dump(mode="json"),
        "terms": term_hashes(config.objective, problem.objective),
        "variables": list(space.names.compact),
        "bounds": [space.lower.tolist(), space.upper.tolist()],
        "groups": [[group.name, group.parameters, repr(group.cut)] for group in space.groups],
        "coefficients": [space.normalise, _digest(space.index), _digest(space.frozen)],
        "dtype": str(problem.dtype),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _identity(direction: Direction) -> list[Any]:
    settings = None if direction.config is None else direction.config.model_dump(mode="json")
    return [direction.name, direction.kind, direction.expert, direction.band, settings]


def _digest(table: npt.NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(table).tobytes()).hexdigest()
