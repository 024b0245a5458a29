"""Baselines: scored first, by the evaluator that judges the search, and cached by content across runs.

    baselines = make_baselines(problem)                     # base first
    kept = CachedMeasurements(evaluator)
    kept.measure(baselines[0].table, "select", objective=True, metrics=True).means

base, every expert, uniform task arithmetic (its average and a grid), every whole method at a grid of scales, and what
is searched in parts at one coefficient for all of them: experts' parts at the uniform grid, others at that of scales.
The recipe that the search starts from, if it does, is the last.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optmerge.atomic import atomic_path
from optmerge.merging.coefficients import Table
from optmerge.merging.recipe import Direction
from optmerge.models.cache import cache_dir
from optmerge.records import Evaluation, SplitName, Vector
from optmerge.runner.evaluator import Evaluator, Measurement
from optmerge.runner.teachers import SPLITS
from optmerge.runner.terms import term_hashes
from optmerge.runner.warm_start import FAMILY as RECIPE

if TYPE_CHECKING:
    from optmerge.runner.problem import Problem
    from optmerge.space.space import SearchSpace

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Baseline:
    """A recipe that needs no search.

    Attributes:
        name: "base", "expert:NAME", "average", "uniform:C", "method:NAME:SCALE", "parts:NAME:C" or "recipe".
        family: What competes with what: base, expert, uniform, recipe, or a method's name.
        table: float64[G, D] over all directions.
    """

    name: str
    family: str
    table: Table


def make_baselines(problem: Problem) -> list[Baseline]:
    """The baselines of a problem, the base first."""
    experts = [problem.column(name) for name in problem.family.experts]
    shape = (problem.space.num_rows, len(problem.directions))

    def constant(columns: Sequence[int], value: float) -> Table:
        table = np.zeros(shape)
        table[:, list(columns)] = value
        return table

    baselines = [Baseline("base", "base", np.zeros(shape))]
    baselines += [
        Baseline(f"expert:{name}", "expert", constant([column], 1.0))
        for name, column in zip(problem.family.experts, experts, strict=True)
    ]
    baselines.append(Baseline("average", "uniform", constant(experts, 1.0 / len(experts))))
    for value in problem.config.baselines.grid:
        baselines.append(Baseline(f"uniform:{value:g}", "uniform", constant(experts, value)))
    for direction in problem.directions:
        if direction.kind == "method" and is_baseline(direction, problem.space):
            for scale in problem.config.baselines.method_grid:
                table = constant([problem.column(direction.name)], scale)
                baselines.append(Baseline(f"method:{direction.name}:{scale:g}", direction.name, table))
    for name, parts in parts_by_whole(problem.directions).items():
        if parts[0].name not in problem.space.usual:
            continue
        columns = [problem.column(direction.name) for direction in parts]
        if parts[0].expert:
            for value in problem.config.baselines.grid:
                baselines.append(Baseline(f"parts:{name}:{value:g}", f"parts:{name}", constant(columns, value)))
        else:
            for scale in problem.config.baselines.method_grid:
                baselines.append(Baseline(f"method:{name}:{scale:g}", name, constant(columns, scale)))
    if problem.warm_start is not None:
        baselines.append(Baseline(RECIPE, RECIPE, problem.warm_start))
    return baselines


def is_baseline(direction: Direction, space: SearchSpace) -> bool:
    """Whether a whole method is scored before the search: of what is chosen among, the usual values only."""
    return direction.name not in space.directions or direction.name in space.usual


def parts_by_whole(directions: Sequence[Direction]) -> dict[str, list[Direction]]:
    """What is searched in parts -> its parts: the experts' parts of a method, or bands."""
    found: dict[str, list[Direction]] = {}
    for direction in directions:
        if direction.kind == "part":
            found.setdefault(direction.whole, []).append(direction)
    return found


def representable(problem: Problem, baseline: Baseline) -> bool:
    """Whether the search space can start from the baseline: its directions are searched, its coefficients reached."""
    used = set(np.flatnonzero(np.abs(baseline.table).sum(axis=0)).tolist())
    if not used <= set(problem.columns):
        return False
    return problem.space.reaches(baseline.table[:, problem.columns])


class CachedMeasurements:
    """Whole-split measurements without gradients, kept in the user's cache by content.

    A measurement depends on models, data, arithmetic, coefficients, terms and what is kept of the experts only, so
    every search over the same models and data shares its baselines.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self.folder = cache_dir() / "measurements"
        self._identities = {split: evaluator.problem.identity(split) for split in SPLITS}
        objective = evaluator.problem.objective
        self._terms = term_hashes(evaluator.problem.config.objective, objective)
        self._keep = objective.keep(evaluator.problem.family.num_layers)
        self._whole = [
            composed.configs[term.name].model_dump()
            for composed in (objective, objective.on("select"))
            for term in composed.whole
        ]

    def measure(self, table: Table, split: SplitName, *, objective: bool, metrics: bool) -> Measurement | Evaluation:
        """A measurement, looked up or made; a failed `Evaluation` if it cannot be made."""
        path = self.folder / f"{self._key(table, split, objective, metrics)}.npz"
        found = _load(path)
        if found is not None:
            return found
        measured = self.evaluator.attempt(
            lambda: self.evaluator.measure(
                table, split, objective=objective, metrics=metrics, per_example=split == "report"
            ),
            split,
        )
        if isinstance(measured, Measurement):
            _save(path, measured)
        return measured

    def _key(self, table: Table, split: SplitName, objective: bool, metrics: bool) -> str:
        problem = self.evaluator.problem
        # Coefficients are keyed per parameter: the same merge under another grouping is the same measurement.
        used = np.flatnonzero(np.any(table != 0.0, axis=0)).tolist()
        rows: dict[str, list[float] | str] = {}
        for group, at in zip(problem.space.groups, problem.space.rows, strict=True):
            part = table[at][:, used]
            alike = bool((part == part[0]).all())
            rows |= dict.fromkeys(
                group.parameters, part[0].tolist() if alike else hashlib.sha256(part.tobytes()).hexdigest()
            )
        facts = [
            "with signals and parts",
            self._identities[split],
            split,
            [_direction_key(problem, column) for column in used],
            rows,
            [settings.model_dump() for settings in problem.objective.on(split).configs.values()] if objective else None,
            self._terms if objective or self._whole else None,
            self._whole if split == "report" else None,
            self._keep.identity(split),
            metrics,
            self.evaluator.batch_tokens,
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _direction_key(problem: Problem, column: int) -> list[str]:
    """What a direction is, whatever it is called; the data of its statistics included."""
    direction = problem.directions[column]
    return [direction.kind, direction.expert, problem.deltas.key(direction)]


def _load(path: Path) -> Measurement | None:
    try:
        with np.load(path) as stored:
            means: dict[str, dict[str, float]] = json.loads(str(stored["means"]))
            parts: dict[str, float] = json.loads(str(stored["parts"]))
            signals: dict[str, float] = json.loads(str(stored["signals"]))
            seconds: dict[str, float] = json.loads(str(stored["seconds"]))
            arrays: dict[str, dict[str, Vector]] = {}
            for key in stored.files:
                if "\t" in key:
                    task, name = key.split("\t")
                    arrays.setdefault(task, {})[name] = stored[key]
    except FileNotFoundError:
        return None
    except (ValueError, OSError, KeyError) as problem:
        log.warning("the cached measurement %s cannot be read (%s); it is made again", path, problem)
        return None
    return Measurement(means, arrays, None, parts, seconds | {"cached": 1.0}, signals)


def _save(path: Path, measured: Measurement) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    entries: dict[str, np.ndarray[Any, Any]] = {
        f"{task}\t{name}": values for task, arrays in measured.per_example.items() for name, values in arrays.items()
    }
    entries["means"] = np.array(json.dumps(measured.means))
    entries["parts"] = np.array(json.dumps(dict(measured.parts)))
    entries["signals"] = np.array(json.dumps(dict(measured.signals)))
    entries["seconds"] = np.array(json.dumps(dict(measured.seconds)))
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.savez(handle, allow_pickle=False, **entries)
