"""How long a search will take: forward passes counted, times a speed that is measured in a fifth of a second.

forward = forward_seconds(family, {"fit": 90_000, "select": 30_000, "report": 250_000}, device, dtype)
rows = stage_rows(stages, sizes, whole=360, forward=forward["fit"])      # each stage's seconds per evaluation
part_seconds(config, stages, rows, forward, baselines=14, at_once=1)     # {"teachers": ..., "search": ...}
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from optmerge.calibration.data import Calibration
from optmerge.config.drivers import CURVATURE_DRIVERS, GRADIENT_DRIVERS
from optmerge.config.schema import SearchConfig
from optmerge.merging.recipe import Direction
from optmerge.models.architecture import GENERATIVE
from optmerge.models.family import Family
from optmerge.models.spread import Spread
from optmerge.objective.objective import Objective
from optmerge.records import SplitName
from optmerge.runner.closed_form import form_count
from optmerge.runner.spreading import devices_of
from optmerge.runner.statistics_cost import needs_of, statistics_passes
from optmerge.space.space import SearchSpace

EFFICIENCY = 0.4  # share of a plain matrix product's speed that small-batch transformers reach


@dataclass(frozen=True, eq=False)
class PlannedStage:
    """A stage before anything is loaded; the budget of ``config`` is its share."""

    config: SearchConfig
    space: SearchSpace
    objective: Objective


@dataclass(frozen=True)
class StageRow:
    """One stage of a schedule: what it searches, its share of the evaluations, and the seconds that one takes."""

    driver: str
    granularity: str
    dimension: int
    evaluations: int | None
    seconds: float


def forward_seconds(
    family: Family, tokens: Mapping[SplitName, int], device: torch.device, dtype: torch.dtype
) -> dict[SplitName, float]:
    """Split -> estimated seconds of one forward pass over it, from its padded tokens."""
    rate = _product_rate(device, dtype) * EFFICIENCY
    return {split: 2.0 * _multiplied(family) * count / rate for split, count in tokens.items()}


def stage_rows(
    stages: Sequence[PlannedStage], sizes: Sequence[dict[str, int]], *, whole: int, forward: float
) -> tuple[StageRow, ...]:
    """What the plan says of each stage.

    Args:
        stages: The stages.
        sizes: Of each, task -> how many fit examples it looks at.
        whole: Examples of the whole fit split.
        forward: Seconds of one forward pass over it.
    """
    return tuple(
        StageRow(
            stage.config.driver.name,
            stage.config.space.granularity,
            stage.space.dimension,
            stage.config.budget.evaluations,
            forward * sum(seen.values()) / whole * _passes(stage, seen),
        )
        for stage, seen in zip(stages, sizes, strict=True)
    )


def _passes(stage: PlannedStage, fit_sizes: dict[str, int]) -> float:
    """Forward passes over a stage's fit examples that one evaluation costs."""
    driver = stage.config.driver
    batch = getattr(driver, "batch", None)
    share = 1.0
    if batch is not None:
        share = sum(min(batch, size) for size in fit_sizes.values()) / sum(fit_sizes.values())
    passes = 1.0
    if driver.name in GRADIENT_DRIVERS:  # a pass back costs two forward ones
        passes += 2.0 + stage.config.checkpointing + stage.objective.two_passes
    if driver.name in CURVATURE_DRIVERS:  # d + 1 more points are judged, and as many evaluations counted
        passes = (passes + stage.space.dimension + 1) / (stage.space.dimension + 1)
    return share * passes


def part_seconds(
    config: SearchConfig,
    stages: Sequence[PlannedStage],
    rows: Sequence[StageRow],
    forward: Mapping[SplitName, float],
    baselines: int,
    at_once: int,
) -> dict[str, float]:
    """Part of the search -> seconds, from those of one forward pass over each split."""
    result = {
        "teachers": sum(forward.values()),
        "baselines": forward["fit"] + baselines * (forward["select"] + forward["report"]),
    }
    if config.closed_form:
        solved = len(config.baselines.closed_form_emphasis) * len(config.baselines.closed_form_ridge)
        solved *= form_count(rows[0].granularity)
        result["closed form"] = forward["fit"] + solved * forward["select"]
    total = 0.0
    for number, (stage, row) in enumerate(zip(stages, rows, strict=True)):
        if len(rows) == 1:
            result["one evaluation"] = row.seconds
        if number and stage.config.objective != stages[number - 1].config.objective:  # baselines are judged anew
            result["teachers"] += sum(forward.values())
            result["baselines"] += forward["fit"] + (baselines + 1) * forward["select"]
        if row.evaluations is not None:
            generations = row.evaluations / config.budget.select_every
            if row.driver == "cma":
                generations /= 12
            elif row.driver in CURVATURE_DRIVERS:
                generations /= row.dimension + 1
            total += row.evaluations * row.seconds + generations * forward["select"]
    if all(row.evaluations is not None for row in rows):
        result["search"] = total / at_once
    return result


def speedup(config: SearchConfig, spread: Spread) -> int:
    """How many times as fast as this process alone the workers are, at best: those that share a device count once.

    On a Ray cluster each has the devices that it takes, which need not be this machine's.
    """
    executor = config.executor
    if executor.name == "ray" and spread.main.type == "cuda":
        return max(1, int(executor.workers * min(1.0, executor.gpus_per_worker)))
    return len(set(devices_of(spread, config.device, config.executor.workers)))


def statistics_seconds(
    directions: Sequence[Direction], calibration: Calibration, experts: list[str], forward: Mapping[SplitName, float]
) -> dict[str, float]:
    """The seconds of statistics for methods, if there are any."""
    needs = needs_of(directions, experts)
    return {"statistics": forward["fit"] * statistics_passes(needs, calibration, experts=len(experts))} if needs else {}


def _multiplied(family: Family) -> int:
    """Parameters that a token is multiplied with: embeddings are looked up, unless a language model's output is too."""
    return sum(
        parameter.numel
        for parameter in family.parameters.values()
        if parameter.role.kind != "embedding" or family.kind in GENERATIVE
    )


def _product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Multiply-adds (counted as two operations) per second of a mid-sized matrix product on the device."""
    side = 512 if device.type == "cpu" else 4096
    a = torch.ones(side, side, dtype=dtype, device=device)
    out = torch.empty_like(a)
    torch.mm(a, a, out=out)
    _wait(device)
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < 0.2:
        torch.mm(a, a, out=out)
        count += 1
        if device.type != "cpu" and count % 16 == 0:
            _wait(device)
    _wait(device)
    return 2.0 * side**3 * count / (time.perf_counter() - begun)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
