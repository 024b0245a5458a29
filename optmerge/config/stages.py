"""Stages: the drivers of a search file's ``schedule``, each of which starts from the best that the last one found.

    schedule:
      - {driver: adam, evaluations: 100, granularity: layer-wise}
      - {driver: cma, objective: accuracy}

A search without a schedule is one of a single stage. What a stage does not say is what the search file says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from optmerge.config.alternatives import one_of
from optmerge.config.base import Strict, named
from optmerge.config.drivers import GRADIENT_DRIVERS, NO_GRADIENT_DRIVERS, DriverConfig
from optmerge.config.executor import executor_problems
from optmerge.config.objectives import TERM_CONFIGS, ObjectiveConfig, no_gradient
from optmerge.config.several_objectives import not_of_a_task
from optmerge.config.spaces import Granularity
from optmerge.errors import did_you_mean

EVALUATIONS = 300  # the budget where the search file names none
NESTED = ("model-wise", "task-wise", "layer-wise", "layer-kind-wise", "tensor-wise")  # each divides the one before
FINEST = ("chunk-wise", "column-wise")  # each divides tensors in its own way


class StageConfig(Strict):
    """One stage of a schedule."""

    driver: Annotated[DriverConfig, BeforeValidator(named)] = Field(
        description="who searches: a name, or a mapping with a name"
    )
    evaluations: int | None = Field(
        None,
        ge=1,
        description="its share of budget.evaluations; null = what is left, in the last stage only",
    )
    patience: int | None = Field(
        None, ge=1, description="end the stage after this many select scores without improvement"
    )
    granularity: Granularity | None = Field(
        None, description="of the search space in this stage, never coarser than before; null = space.granularity"
    )
    examples: int | None = Field(
        None,
        ge=1,
        description="fit examples per task that the driver is judged on, chosen by the seed, each stage's among those "
        "of a stage that has more; select is always whole; null = all",
    )
    objective: ObjectiveConfig | None = Field(
        None,
        description="what a good merge is in this stage; the start, the baselines and the stage's iterates are judged "
        "by it; null = the search file's",
    )


def stage_problems(data: Mapping[str, Any]) -> list[str]:
    """What disagrees between drivers, objectives and budgets, of a search in one stage or many.

    Args:
        data: A search as plain data, presets resolved; parts that are malformed are passed over.
    """
    problems: list[str] = []
    for prefix, stage in _stages(data):
        problems += _one_stage(prefix, stage, data)
    usual = _mapping(data.get("space")).get("granularity", "tensor-wise")
    problems += _curvature(list(_stages(data)), usual)
    drivers = [_mapping(named(stage.get("driver"))) for _, stage in _stages(data)]
    objectives = [data.get("objective"), *(stage.get("objective") for _, stage in _stages(data))]
    problems += executor_problems(_mapping(named(data.get("executor"))), drivers, objectives)
    schedule = data.get("schedule")
    if schedule is None:
        return problems
    if data.get("driver") is not None:
        problems.append(
            "driver and schedule are both given, and only one of them can say who searches. Make the driver a stage "
            "of the schedule, or take one of them out (--set schedule=null)."
        )
    if isinstance(schedule, list):
        problems += _shares(schedule, _mapping(data.get("budget")))
        problems += _granularities(schedule, usual)
    return problems


def _stages(data: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each stage with the beginning of its keys' paths."""
    schedule = data.get("schedule")
    if schedule is None:
        yield "", {"driver": data.get("driver")}
    elif isinstance(schedule, list):
        for number, stage in enumerate(schedule):
            yield f"schedule.{number}.", _mapping(stage)


def _one_stage(prefix: str, stage: Mapping[str, Any], data: Mapping[str, Any]) -> list[str]:
    problems = []
    own = stage.get("objective") is not None
    objective = _mapping(stage["objective"] if own else data.get("objective"))
    if own or not prefix:
        tasks = _mapping(data.get("tasks"))
        for task in _mapping(objective.get("task_weights")):
            if tasks and task not in tasks:
                near = did_you_mean(str(task), [str(known) for known in tasks])
                listed = ", ".join(map(str, tasks))
                problems.append(f"{prefix}objective.task_weights.{task}: there is no such task ({listed}).{near}")
    driver = _mapping(named(stage.get("driver")))
    name = driver.get("name", "" if prefix else "adam")
    raw_terms = objective.get("terms")
    terms = [_mapping(term).get("name") for term in raw_terms] if isinstance(raw_terms, list) else []
    without = [term for term in map(str, terms) if term in TERM_CONFIGS and not TERM_CONFIGS[term].differentiable]
    if name in GRADIENT_DRIVERS and without:
        problems.append(prefix + no_gradient(name, without, drivers=NO_GRADIENT_DRIVERS))
    unseen = not_of_a_task(driver, [str(term) for term in terms])
    if unseen is not None:
        problems.append(prefix + unseen)
    if name in GRADIENT_DRIVERS and (data.get("methods") or one_of(data)):
        instead = "give one method instead of methods" if data.get("methods") else "make one method the direction"
        problems.append(
            f"{prefix}driver is {name}, which follows a gradient, and a choice among methods has none. Use "
            f"{', '.join(NO_GRADIENT_DRIVERS[:-1])} or {NO_GRADIENT_DRIVERS[-1]}, or {instead}."
        )
    budget = _mapping(data.get("budget")).get("evaluations")
    share, which = (stage["evaluations"], f"{prefix}evaluations") if stage.get("evaluations") else (budget, "")
    population = driver.get("population")
    if isinstance(population, int) and isinstance(share, int) and population > share:
        problems.append(
            f"{prefix}driver.population is {population}, more than {which or 'budget.evaluations'} ({share}), so not "
            "one generation would be whole."
        )
    if name == "natural-niches" and stage.get("examples") is not None:
        problems.append(
            f"{prefix}examples: natural-niches compares candidates example by example, on the whole fit split. Take "
            "examples out of this stage, or use another driver."
        )
    return problems


def _shares(schedule: list[Any], budget: Mapping[str, Any]) -> list[str]:
    """Where the stages' shares leave no end, or no evaluation, to one of them."""
    total = budget.get("evaluations", EVALUATIONS)
    shares = [_mapping(stage).get("evaluations") for stage in schedule]
    problems = [
        f"schedule.{number}.evaluations is missing; only the last stage can have what is left of the budget."
        for number, share in enumerate(shares[:-1])
        if share is None
    ]
    known = sum(share for share in shares if isinstance(share, int))
    if isinstance(total, int) and (known > total or (known == total and shares[-1:] == [None])):
        listed = " + ".join("the rest" if share is None else str(share) for share in shares)
        problems.append(
            f"budget.evaluations is {total}, and the schedule's stages want {listed}. Raise the budget, or lower the "
            "stages' evaluations."
        )
    return problems


def _granularities(schedule: list[Any], usual: object) -> list[str]:
    """Where a stage cannot begin at the coefficients of the one before."""
    problems = []
    names = [_mapping(stage).get("granularity") or usual for stage in schedule]
    for number, (before, name) in enumerate(pairwise(names), 1):
        nests = before in NESTED and (name in FINEST or (name in NESTED and NESTED.index(name) > NESTED.index(before)))
        if before != name and not nests:
            problems.append(
                f"schedule.{number}.granularity is {name} after {before}, and coefficients of {before} groups cannot "
                f"be kept there. Go from coarse to fine: {', '.join(NESTED)}, then {' or '.join(FINEST)}."
            )
    return problems


def _curvature(stages: list[tuple[str, Mapping[str, Any]]], usual: object) -> list[str]:
    """Where a driver wants gradients of its variables that no stage before it has recorded."""
    problems, measured = [], set()
    for prefix, stage in stages:
        driver = _mapping(named(stage.get("driver")))
        variables = str(stage.get("granularity") or usual)
        if driver.get("scale") == "fisher" and variables not in measured:
            problems.append(
                f"{prefix}driver.scale is fisher, which needs the gradients of the same variables ({variables}), and "
                "no stage before has a driver that follows them. Give it one of that granularity (schedule: [{driver: "
                "adam, evaluations: 50}, {driver: {name: cma, scale: fisher}}]), or use norms, which needs none."
            )
        if driver.get("name") in GRADIENT_DRIVERS:
            measured.add(variables)
    return problems


def _mapping(value: object) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}
