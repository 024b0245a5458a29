"""Closed-form baselines: the coefficients that best reproduce every expert's layer outputs on its own fit inputs.

    baselines = make_closed_forms(problem, towards=0.3, progress=progress)      # "closed-form:layer:1:0.1", ...
    best = best_of_forms(baselines, {"closed-form:layer:1:0.1": 0.7, ...})      # by their values on select

Each expert is run once over its inputs; what is kept of it are K x K numbers per tensor and expert, in the user's
cache by content. The *form* says what shares coefficients: a group of the search space, a transformer layer, or the
whole model. What has no linear layer (norms, embeddings) has the coefficients of its layer, or else of the model.
Every form is solved with every emphasis and strength of the search file, and select chooses among them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from optmerge.errors import RunFailed
from optmerge.merging.closed_form import Matrix, Vector, normal_equations, output_products, solve
from optmerge.merging.coefficients import Table
from optmerge.models.cache import recall, remember
from optmerge.records import Progress
from optmerge.runner.baselines import Baseline
from optmerge.runner.result import Scored
from optmerge.runner.statistics import ExpertStatistics

if TYPE_CHECKING:
    from optmerge.models.family import Family
    from optmerge.runner.problem import Problem
    from optmerge.space.groups import TensorGroup

FAMILY = "closed-form"

Equations = tuple[Matrix, Vector]
Block = Callable[["TensorGroup"], Hashable]


def make_closed_forms(problem: Problem, *, towards: float, progress: Progress | None = None) -> list[Baseline]:
    """One baseline per form, emphasis and strength; a form that this space does not tell from another stands once.

    Args:
        problem: Opened. Its resident model holds other values afterwards, and its engine knows it.
        towards: The uniform coefficient that the ridge draws to.
        progress: Told of experts.

    Raises:
        RunFailed: There is not enough memory to run an expert.
    """
    config, products = problem.config.baselines, tensor_products(problem, progress)
    baselines: list[Baseline] = []
    for emphasis in config.closed_form_emphasis:
        equations = {name: normal_equations(found, emphasis=emphasis) for name, found in products.items()}
        for form, block in forms(problem).items():
            for ridge in config.closed_form_ridge:
                table = _table(problem, equations, block, towards=towards, ridge=ridge)
                baselines.append(Baseline(f"{FAMILY}:{form}:{emphasis:g}:{ridge:g}", FAMILY, table))
    return baselines


def best_of_forms(baselines: Sequence[Baseline], values: Mapping[str, float]) -> list[Baseline]:
    """The baseline of every form that has the lowest value.

    Args:
        baselines: Of `make_closed_forms`.
        values: Name -> value on select, of those that have one.
    """
    best: dict[str, Baseline] = {}
    for baseline in baselines:
        form = baseline.name.split(":")[1]
        if baseline.name in values and (form not in best or values[baseline.name] < values[best[form].name]):
            best[form] = baseline
    return list(best.values())


def best_uniform(baselines: Sequence[Baseline], scored: Sequence[Scored]) -> float:
    """The coefficient of the uniform baseline that is best on select.

    Raises:
        RunFailed: Not one of them has a value there.
    """
    values = {row.name: row.select.value for row in scored if row.family == "uniform" and row.select.value is not None}
    if not values:
        raise RunFailed(
            "No uniform baseline could be scored on select, so there is nothing to draw the closed form to."
        )
    best = min(values, key=values.__getitem__)
    row = next(baseline.table[0] for baseline in baselines if baseline.name == best)
    return float(row[np.abs(row).argmax()])


def forms(problem: Problem) -> dict[str, Block]:
    """Form -> the block of a group, whose tensors share coefficients; the coarsest first."""
    found: dict[str, Block] = {"model": lambda group: "model"}
    groups = problem.space.groups
    layers = {_layer(problem.family, group) or group.name for group in groups}
    if len(layers) > 1:
        found["layer"] = lambda group: _layer(problem.family, group) or group.name
    if len(groups) > len(layers):
        found["group"] = lambda group: group.name
    return found


def form_count(granularity: str) -> int:
    """How many forms a space of this granularity has."""
    return {"model-wise": 1, "task-wise": 1, "layer-wise": 2}.get(granularity, 3)


def tensor_products(problem: Problem, progress: Progress | None = None) -> dict[str, list[Matrix]]:
    """Parameter -> A_t of every expert t (`output_products`), of the linear layers; from the cache, or measured.

    One expert's Gram matrices exist at a time, and no more of them than one pass gathers.
    """
    family = problem.family
    statistics = ExpertStatistics(
        problem.config, family, problem.calibration, device=problem.device, dtype=problem.dtype
    )
    facts = [statistics.key({"grams"}), family.fingerprint(), list(family.experts)]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    known = recall("closed-form", key)
    if known is None:
        by_expert = []
        for done, expert in enumerate(family.experts):
            by_expert.append(
                {
                    name: output_products(_deltas(family, name, problem.device), gram).tolist()
                    for name, gram in _grams(statistics, problem, expert)
                }
            )
            if progress:
                progress("closed form", done + 1, len(family.experts))
        problem.engine.forget()
        # A layer that some expert's inputs do not reach has no least squares.
        known = {name: [of[name] for of in by_expert] for name in by_expert[0] if all(name in of for of in by_expert)}
        remember("closed-form", key, known)
    return {name: [np.array(product) for product in products] for name, products in known.items()}


def _grams(statistics: ExpertStatistics, problem: Problem, expert: str) -> Iterator[tuple[str, torch.Tensor]]:
    for some in statistics.stream(problem.resident, expert):
        yield from some.items()


def _deltas(family: Family, name: str, device: torch.device) -> list[torch.Tensor]:
    """Every expert's task vector, [d_out, d_in], fp32 (fp64 for fp64 models)."""
    base = family.read("base", name)
    precise = torch.float64 if base.dtype == torch.float64 else torch.float32
    base = base.to(device, precise)
    deltas = [family.read(expert, name).to(device, precise) - base for expert in family.experts]
    return [delta.mT for delta in deltas] if family.parameters[name].input_first else deltas


def _layer(family: Family, group: TensorGroup) -> Hashable:
    """A group's transformer layer, of the part of the model that has it; None outside the layers."""
    role = family.parameters[group.parameters[0]].role
    return None if group.layer is None else (role.part, group.layer)


def _table(
    problem: Problem, equations: Mapping[str, Equations], block: Block, *, towards: float, ridge: float
) -> Table:
    """The coefficients [G, D] of one form and strength."""
    space, experts = problem.space, [problem.column(name) for name in problem.family.experts]
    levels: list[Block] = [block, lambda group: _layer(problem.family, group), lambda group: "model"]
    solved: list[dict[Hashable, Vector]] = []
    for level in levels:
        summed: dict[Hashable, Equations] = {}
        for group in space.groups:
            for name in group.parameters:
                if name in equations and level(group) is not None:
                    matrix, vector = summed.get(level(group), (0.0, 0.0))
                    summed[level(group)] = (matrix + equations[name][0], vector + equations[name][1])
        solved.append({key: solve(*found, towards=towards, ridge=ridge) for key, found in summed.items()})
    table = np.zeros((space.num_rows, len(problem.directions)))
    for group, rows in zip(space.groups, space.rows, strict=True):
        row = next((of[level(group)] for level, of in zip(levels, solved, strict=True) if level(group) in of), towards)
        table[rows, experts] = row
    return table
