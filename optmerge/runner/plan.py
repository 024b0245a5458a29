"""What a search will cost, before any weight is loaded: headers, configs and calibration data only.

plan = make_plan(config, root=Path("."))
plan.dimension, plan.memory, plan.seconds
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from optmerge.config.drivers import CURVATURE_DRIVERS, GRADIENT_DRIVERS
from optmerge.config.schema import SearchConfig
from optmerge.drivers import check_driver
from optmerge.merging import kernels
from optmerge.merging.alternatives import searched_directions
from optmerge.merging.deltas import Deltas
from optmerge.merging.directions import known_directions
from optmerge.merging.methods import build_method
from optmerge.merging.recipe import Direction
from optmerge.models.device import pick_dtype
from optmerge.models.family import open_family
from optmerge.models.spread import Spread
from optmerge.objective.objective import Objective
from optmerge.records import SplitName
from optmerge.runner.baselines import is_baseline, parts_by_whole
from optmerge.runner.closed_form import form_count
from optmerge.runner.geometry import check_regularisers
from optmerge.runner.knowledge import require_cells
from optmerge.runner.memory import MemoryPlan, plan_memory, recorded_bytes, worst_plan
from optmerge.runner.memory_division import DeviceMemory
from optmerge.runner.plan_time import (
    PlannedStage,
    StageRow,
    forward_seconds,
    part_seconds,
    speedup,
    stage_rows,
    statistics_seconds,
)
from optmerge.runner.problem import input_reader, load_tasks
from optmerge.runner.references import absolute_references
from optmerge.runner.spreading import open_spread
from optmerge.runner.statistics import methods_of_labels
from optmerge.runner.terms import untimed_notes
from optmerge.runner.unseen import unseen_notes
from optmerge.space.build import build_space
from optmerge.space.choices import choosing
from optmerge.space.space import SearchSpace


@dataclass(frozen=True)
class GroupRow:
    """One tensor group of the plan, or the slices of one tensor, which are ``slices`` groups."""

    name: str
    layer: int | None
    kind: str
    tensors: int
    parameters: int
    slices: int = 1


@dataclass(frozen=True)
class Plan:
    """The estimate. Memory in bytes, time in seconds.

    Attributes:
        stages: The stages; one where there is no schedule. What follows is of the last one, unless it is of all.
        dimension: Variables that the driver moves.
        groups: The tensor groups.
        directions: Names of what gets coefficients.
        evaluations: Budget on the fit split, None when only the clock limits it.
        baselines: How many recipes are scored before the search.
        tokens: Split -> tokens of one pass over it.
        memory: Part -> bytes, with their sum as ``peak``.
        mapped: Bytes of mapped files; page cache, which the system takes back when it needs to.
        budget: Bytes that may be used.
        devices: What each of several devices holds of it, where the model is spread.
        disk: Bytes that vectors and gradients of all evaluations take in the run's folder; None where only the clock
            limits them.
        arithmetic: How candidates are written and gradients contracted, in words.
        seconds: Part -> estimated seconds.
        workers: How many processes evaluate, each with the memory of ``memory``.
        per_hour: Evaluations on the fit split in an hour, of all workers together and in the last stage.
        warnings: What a user should know before starting.
    """

    stages: tuple[StageRow, ...]
    dimension: int
    groups: tuple[GroupRow, ...]
    directions: tuple[str, ...]
    evaluations: int | None
    baselines: int
    tokens: dict[SplitName, int]
    memory: dict[str, int]
    mapped: int
    budget: int
    devices: tuple[DeviceMemory, ...]
    disk: int | None
    arithmetic: str
    seconds: dict[str, float]
    workers: int
    per_hour: float
    warnings: tuple[str, ...]


def make_plan(config: SearchConfig, *, root: Path) -> Plan:
    """Estimate a search.

    Raises:
        UserError: Whatever would stop the search before its first evaluation, except values in the weights.
    """
    config = absolute_references(config, root)
    family = open_family(
        config.base,
        config.experts,
        relative_to=Path(),
        heads=config.heads,
        vocabulary=config.vocabulary,
        allow_pickle=config.allow_pickle,
        check_values=False,
    )
    dtype = pick_dtype(config.dtype, family)
    spread = open_spread(config, family, dtype)
    device = spread.main
    experts = list(family.experts)
    directions, alternatives = searched_directions(config.directions, experts, config.method, config.alternatives)
    roles = {name: parameter.role for name, parameter in family.parameters.items()}
    lanes = {direction.name: direction.lane for direction in directions}
    absent = Deltas(family, directions, cache=None).absent()
    if alternatives is not None:
        directions = alternatives.directions
    stages: list[PlannedStage] = []
    for stage in _with_shares(config):
        space = build_space(stage.space, roles, list(lanes), untouched=absent, shapes=family.parameters, lanes=lanes)
        if alternatives is not None:
            space = choosing(space, alternatives)
        check_driver(stage.driver, space.dimension, budget=stage.budget.evaluations)
        require_cells(stage.driver.name, space)
        objective = Objective(stage.objective, list(config.tasks), dict.fromkeys(config.tasks))
        objective.require_gradient(stage.driver.name)
        check_regularisers(objective, space)
        stages.append(PlannedStage(stage, space, objective))
    labelled = any(stage.objective.labelled for stage in stages)
    known = known_directions(directions, config.baselines.methods, experts)
    readers = methods_of_labels(known, experts)
    calibration = load_tasks(
        config, family, input_reader(config, family, dtype), labelled=labelled, label_readers=readers
    )
    names: tuple[SplitName, ...] = ("fit", "select", "report")
    tokens = {
        split: sum(
            batch.tokens
            for data in calibration.tasks.values()
            for batch in data.splits[split].batches(batch_tokens=config.batch_tokens)
        )
        for split in names
    }
    groups = tuple(
        GroupRow(
            g.name, g.layer, g.kind, len(g.parameters), sum(family.parameters[p].numel for p in g.parameters), g.count
        )
        for g in space.groups
    )
    baselines = _count_baselines(config, stages[0].config.space.granularity, space, known, directions)
    memory = worst_plan([plan_memory(s.config, family, known, s.space, calibration, spread, dtype) for s in stages])
    forward = forward_seconds(family, tokens, device, dtype)
    sizes = [
        {task: min(size, stage.examples or size) for task, size in calibration.fit_sizes().items()}
        for stage in config.stages
    ]
    rows = stage_rows(stages, sizes, whole=sum(calibration.fit_sizes().values()), forward=forward["fit"])
    at_once = speedup(config, spread)
    return Plan(
        stages=rows,
        dimension=space.dimension,
        groups=groups,
        directions=space.directions,
        evaluations=config.budget.evaluations,
        baselines=baselines,
        tokens=tokens,
        memory={**memory.parts, "peak": memory.peak},
        mapped=memory.mapped,
        budget=memory.budget,
        devices=memory.devices,
        disk=None
        if config.budget.evaluations is None
        else sum(recorded_bytes(s.config, s.space) * (s.config.budget.evaluations or 0) for s in stages),
        arithmetic=_arithmetic(memory, spread),
        seconds=statistics_seconds(known, calibration, experts, forward)
        | part_seconds(config, stages, rows, forward, baselines, at_once),
        workers=config.executor.workers,
        per_hour=3600.0 * at_once / max(rows[-1].seconds, 1e-9),
        warnings=tuple(
            dict.fromkeys(
                [
                    *calibration.notes,
                    *memory.notes,
                    *unseen_notes(family, space),
                    *(note for stage in stages for note in untimed_notes(stage.objective)),
                    *(
                        warning
                        for stage, seen in zip(stages, sizes, strict=True)
                        for warning in _warnings(stage.config, stage.space.dimension, seen)
                    ),
                ]
            )
        ),
    )


def _count_baselines(
    config: SearchConfig,
    granularity: str,
    space: SearchSpace,
    known: Sequence[Direction],
    directions: Sequence[Direction],
) -> int:
    """How many recipes are scored before the search.

    Args:
        config: The search.
        granularity: The first stage's, for which the closed form is solved.
        space: The last stage's.
        known: The directions of the search and of whole methods that are baselines.
        directions: Those of the search.
    """
    methods = [
        build_method(d.config, list(config.experts))
        for d in known
        if d.kind == "method" and d.config and is_baseline(d, space)
    ]
    wholes = [parts[0].expert for parts in parts_by_whole(directions).values() if parts[0].name in space.usual]
    by_expert = sum(map(bool, wholes))
    baselines = 2 + len(config.experts) + (1 + by_expert) * len(config.baselines.grid)
    baselines += (len(methods) + len(wholes) - by_expert) * len(config.baselines.method_grid)
    if config.closed_form:
        baselines += form_count(granularity)
    baselines += config.space.recipe is not None
    return baselines


def _with_shares(config: SearchConfig) -> list[SearchConfig]:
    """The search in each of its stages, with the stage's share of the evaluations as budget."""
    return [
        config.at_stage(number).model_copy(update={"budget": config.budget.model_copy(update={"evaluations": share})})
        for number, share in enumerate(config.shares)
    ]


def _arithmetic(memory: MemoryPlan, spread: Spread) -> str:
    written = f"candidates are written by {kernels.kind(spread.main)} kernels"
    if spread.main.type == "cpu":
        written += " from mapped files"
    else:
        where = ", ".join(map(str, spread.devices))
        base = "the base" if memory.base_resident else "not the base"
        written += f"; resident on {where}: {', '.join([base, *memory.resident])}; the rest is streamed"
    gathered = {
        None: "no gradients",
        "accumulate": "weight gradients are accumulated and contracted once a step",
        "hooks": "weight gradients are contracted one by one and dropped",
    }[memory.form]
    return f"{written}; {gathered}"


def _warnings(config: SearchConfig, dimension: int, fit_sizes: dict[str, int]) -> list[str]:
    warnings = []
    if config.space.granularity == "chunk-wise":
        warnings.append(
            "the chunks are shared out here as if all task vectors were of one size; the search measures them, and the "
            "numbers of chunks will differ somewhat."
        )
    few = {task: size for task, size in fit_sizes.items() if size < 64}
    if few and dimension > 20:
        listed = ", ".join(f"{task} {size}" for task, size in few.items())
        warnings.append(
            f"{dimension} coefficients from few fit examples ({listed}) over-fit easily: use 64 or more a task, or "
            "layer-wise coefficients."
        )
    budget = config.budget.evaluations
    if config.driver.name not in GRADIENT_DRIVERS and budget is not None and budget < 5 * dimension:
        warnings.append(
            f"{budget} evaluations for {dimension} variables is close to random search for {config.driver.name}; "
            "use adam, a coarser space, or a larger budget."
        )
    if config.driver.name in CURVATURE_DRIVERS and budget is not None and budget < 10 * (dimension + 1):
        warnings.append(
            f"{budget} evaluations are {budget // (dimension + 1)} steps of {config.driver.name}, each of which counts "
            f"{dimension + 1}; allow ten steps ({10 * (dimension + 1)}) or more, or use adam."
        )
    return warnings
