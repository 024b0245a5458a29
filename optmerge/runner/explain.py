"""What a finished search has learnt: coefficients by layer and kind, sensitivity, and what is lost without a part.

    found = explain(Path("runs/first"), passes=200)
    found["reliance"]["rise"]           # expert x task, by how much the task's objective rises without the expert

Everything is measured at the best recipe, by the evaluator of the search. Nothing is added to the trajectory, and the
report split is not looked at.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optmerge.errors import RunError
from optmerge.merging.coefficients import Table
from optmerge.merging.recipe import Recipe
from optmerge.records import Progress, Record, SplitName, Trajectory, Vector
from optmerge.runner.evaluator import Evaluator
from optmerge.runner.folder import RunFolder
from optmerge.runner.geometry import make_geometry
from optmerge.runner.knockout import Block, Knockouts, choose_blocks
from optmerge.runner.manifest import as_begun, check_content, make_manifest
from optmerge.runner.problem import Problem, open_problem
from optmerge.runner.reproduce import read_manifest
from optmerge.runner.sensitivity import Sensitivity, measure_sensitivity, why_insensitive
from optmerge.runner.stages import open_stage
from optmerge.runner.teachers import Teachers

if TYPE_CHECKING:
    from optmerge.space.groups import TensorGroup

SPLITS: tuple[SplitName, ...] = ("fit", "select")
TOLERANCE = 0.01  # share of the objective that parts which could be dropped may cost together, one by one

Tell = Callable[[str], None]


def explain(
    path: Path,
    *,
    passes: int = 200,
    cheap: bool = False,
    progress: Progress = lambda stage, done, total: None,
    tell: Tell = lambda text: None,
) -> dict[str, Any]:
    """Measure what a finished run's best recipe stands on.

    Args:
        path: The run's folder.
        passes: The most forward passes over select for the ablation of groups, and over fit for the curvature.
        cheap: Leave out the ablation of groups; that of whole experts stays.
        progress: Told of long work.
        tell: Told what will be measured and how long it takes, before it is.

    Returns:
        What is written as explain.json: plain data.

    Raises:
        RunError: There is no finished run, it is of another version of optmerge, its models or data changed, or the
            best recipe cannot be judged.
    """
    folder = RunFolder.open(path)
    result = folder.read_json("result.json")
    if result is None or result["status"] != "finished":
        raise RunError(
            f"{path} is not finished, so there is no best recipe to explain. Go on with `optmerge resume {path}`, "
            "and look at `optmerge report` meanwhile."
        )
    begun = read_manifest(path)
    with folder.locked():
        problem = open_problem(folder.config(), progress=progress, **as_begun(begun))
        check_content(begun, make_manifest(problem), path)
        records = Trajectory.read(path).records
        best = _best(records, result, path)
        for stage in range(1, best.stage + 1):
            problem = open_stage(problem, stage)
        evaluator = Evaluator(problem, Teachers.make(problem, progress, splits=SPLITS))
        _set_normalisers(problem, records, path)
        table = best_table(problem, Recipe.load(path / "recipe.yaml"))
        assert best.vector is not None, "the best iterate has a vector"
        problem.space = problem.space.started_at(table[:, problem.columns])
        found = _Explanation(problem, evaluator, best.vector, table, progress, tell).measure(passes, cheap=cheap)
        return {"run": path.resolve().name, **found}


def best_table(problem: Problem, recipe: Recipe) -> Table:
    """A recipe's coefficients in the problem's space: float64[G, D] over all directions.

    Raises:
        RunError: The recipe's groups or directions are not those of the space.
    """
    space = problem.space
    names = [problem.directions[column].name for column in problem.columns]
    given = [direction.name for direction in recipe.directions]
    if recipe.coefficients.shape[0] != space.num_rows or not set(given) <= set(names):
        raise RunError(
            f"The recipe has {recipe.coefficients.shape[0]} groups along {', '.join(given)}, and the search space has "
            f"{space.num_rows} along {', '.join(names)}, so it is not this run's. Put the run's own recipe.yaml back."
        )
    table = np.zeros((space.num_rows, len(problem.directions)))
    table[:, [problem.column(name) for name in given]] = recipe.coefficients
    return table


def _best(records: Sequence[Record], result: Mapping[str, Any], path: Path) -> Record:
    """The record of the best iterate.

    Raises:
        RunError: The result does not name it, or the trajectory does not hold it.
    """
    number: int | None = (result.get("best") or {}).get("record")
    if number is None or number >= len(records):
        raise _older(path, "result.json names no record of the trajectory as the best")
    return records[number]


def _set_normalisers(problem: Problem, records: Sequence[Record], path: Path) -> None:
    """What the search divided by: the base's means, as recorded when the objective was this stage's.

    Raises:
        RunError: A term has no mean there.
    """
    for record in records:
        is_base = record.phase == "baseline" and record.name == "base" and record.error is None
        if is_base and record.split in SPLITS and problem.stages[record.stage].objective is problem.objective:
            objective = problem.objective.on(record.split)
            for term in objective.terms:
                for task in objective.shares:
                    if term.name not in record.metrics.get(task, {}):
                        raise _older(path, f"record {record.id} has no {term.name} of the base on task {task}")
            objective.set_normalisers(record.split, record.metrics)


def _older(path: Path, what: str) -> RunError:
    return RunError(
        f"{path} cannot be explained: {what}, so it is not of this version of optmerge. Search again with `optmerge "
        f"search {path / 'search.yaml'} --output FOLDER`, or explain it with the version that its manifest.json names."
    )


class _Explanation:
    """The measurements of one run, one after the other."""

    def __init__(
        self,
        problem: Problem,
        evaluator: Evaluator,
        vector: Vector,
        table: Table,
        progress: Progress,
        tell: Tell,
    ) -> None:
        self.problem = problem
        self.evaluator = evaluator
        self.vector = vector
        self.table = table
        self.columns = [problem.columns[column] for column in problem.space.columns_at(vector)]
        self.progress = progress
        self.tell = tell

    def measure(self, passes: int, *, cheap: bool) -> dict[str, Any]:
        problem = self.problem
        begun = time.perf_counter()
        knockouts = Knockouts(problem, self.evaluator, self.table)
        once = knockouts.seconds
        sensitivity, why = self._sensitivity(passes)
        active = [column for column in self.columns if self.table[:, column].any()]
        granularity, blocks = ("", []) if cheap else choose_blocks(problem, self.table, active, passes)
        if granularity:
            self.tell(_cost(f"ablation of each direction in each {granularity}", len(blocks), once))
        elif not cheap:
            self.tell(f"Ablations of groups are left out: even one per kind would take more than {passes} passes.")
        self.tell(_cost("ablation of each whole direction", len(active), once))
        ablations = self._without(knockouts, "ablations", blocks)
        wholes = self._without(
            knockouts, "whole directions", [Block(column, "model", None, "model", None) for column in active]
        )
        return {
            "objective": knockouts.value,
            "per_task": dict(knockouts.per_task),
            "directions": [problem.directions[column].name for column in self.columns],
            "coefficients": layer_kind_means(problem, self.table, self.columns),
            "sensitivity": None if sensitivity is None else asdict(sensitivity),
            "why_no_sensitivity": why,
            "ablation": {"granularity": granularity or None, "blocks": ablations},
            "reliance": wholes,
            "droppable": self._droppable(knockouts, active, blocks, ablations),
            "cheap": cheap,
            "seconds": time.perf_counter() - begun,
        }

    def _sensitivity(self, passes: int) -> tuple[Sensitivity | None, str]:
        problem = self.problem
        why = why_insensitive(problem)
        if why:
            self.tell(f"Sensitivity is left out: {why}.")
            return None, why
        if problem.objective.regularisers:  # what they say of a point that is its own start
            self.evaluator.geometry = make_geometry(problem, self.vector)
        found = measure_sensitivity(self.evaluator, self.vector, passes=passes, progress=self.progress, tell=self.tell)
        return found, ""

    def _without(self, knockouts: Knockouts, stage: str, blocks: Sequence[Block]) -> list[dict[str, Any]]:
        found = []
        for done, block in enumerate(blocks, 1):
            found.append(asdict(knockouts.without(block)))
            self.progress(stage, done, len(blocks))
        return found

    def _droppable(
        self, knockouts: Knockouts, active: Sequence[int], blocks: Sequence[Block], ablations: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Per direction, the blocks that cost least until their rises reach `TOLERANCE`; what they cost together."""
        rises = {id(block): entry["rise"] for block, entry in zip(blocks, ablations, strict=True)}
        found = []
        for column in active:
            own = [block for block in blocks if block.column == column and rises[id(block)] is not None]
            allowed, chosen = TOLERANCE * abs(knockouts.value), []
            for block in sorted(own, key=lambda block: rises[id(block)]):
                allowed -= max(0.0, rises[id(block)])
                if allowed < 0:
                    break
                chosen.append(block)
            if chosen:
                rows = np.concatenate([block.rows for block in chosen if block.rows is not None])
                together = knockouts.without(Block(column, "several", None, "several", rows))
                groups = [block.group for block in own if block in chosen]
                found.append({**asdict(together), "groups": groups, "of": len(own)})
        return found


def layer_kind_means(problem: Problem, table: Table, columns: Sequence[int]) -> dict[str, Any]:
    """Mean coefficients by layer and kind of tensor, each element of a parameter counting the same.

    Args:
        problem: Opened.
        table: float64[G, D].
        columns: Directions.

    Returns:
        ``rows`` (layers in depth order, and what stands outside them), ``kinds``, and ``values``, direction -> [row,
        kind], None where there is no such tensor.
    """
    sums: dict[tuple[str, str], Table] = {}
    sizes: dict[tuple[str, str], int] = {}
    for group, rows in zip(problem.space.groups, problem.space.rows, strict=True):
        mean = table[rows][:, columns].mean(axis=0)
        for name in group.parameters:
            parameter = problem.family.parameters[name]
            key = (layer_label(problem, group, name), parameter.role.kind)
            sums[key] = sums.get(key, 0.0) + parameter.numel * mean
            sizes[key] = sizes.get(key, 0) + parameter.numel
    places = list(dict.fromkeys(place for place, _ in sums))
    kinds = list(dict.fromkeys(kind for _, kind in sums))
    values = {
        problem.directions[column].name: [
            [float(sums[place, kind][at] / sizes[place, kind]) if (place, kind) in sums else None for kind in kinds]
            for place in places
        ]
        for at, column in enumerate(columns)
    }
    return {"rows": places, "kinds": kinds, "values": values}


def layer_label(problem: Problem, group: TensorGroup, name: str) -> str:
    """Where a parameter stands: "layer.3", "vision.layer.3", or its kind outside the layers."""
    role = problem.family.parameters[name].role
    part = "" if role.part is None else f"{role.part}."
    return f"{part}{role.kind}" if role.layer is None else f"{part}layer.{role.layer}"


def _cost(what: str, count: int, seconds: float) -> str:
    return f"{what}: forward passes over select: {count}, about {count * seconds:.0f} s."
