"""Ablation of a merge: the objective on select when some coefficients are set to 0, beside that with all of them.

knockouts = Knockouts(problem, evaluator, table)
granularity, blocks = choose_blocks(problem, table, columns, passes=200)
knockouts.without(blocks[0]).rise, .low, .high         # 95 %: paired bootstrap over select examples
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from optmerge.errors import RunError
from optmerge.merging.coefficients import Table
from optmerge.records import Evaluation
from optmerge.runner.bootstrap import Means, objective_lead, paired_bootstrap

if TYPE_CHECKING:
    from optmerge.runner.evaluator import Evaluator, Measurement
    from optmerge.runner.problem import Problem
    from optmerge.space.groups import TensorGroup

RESAMPLES = 400  # of the intervals: a percentile of 2.5 % stands on ten of them at either end

Rows = npt.NDArray[np.int64]


class Block(NamedTuple):
    """Coefficients of one direction that are set to 0 together.

    Attributes:
        column: The direction, among all of the problem's.
        group: What the rows are called.
        layer: Their transformer layer, where they have one in common.
        kind: Of their tensors, or "layer" or "model".
        rows: int64[n] of the table; None is all.
    """

    column: int
    group: str
    layer: int | None
    kind: str
    rows: Rows | None


@dataclass(frozen=True)
class Knockout:
    """What is lost without a block.

    Attributes:
        direction: Whose coefficients were set to 0.
        group: Where.
        layer: The group's transformer layer.
        kind: Of the group.
        coefficient: Mean of the coefficients that were set to 0.
        rise: By how much the objective rises, in its unit; None if it has no value there.
        low: Lower end of the 95 % interval; None where a term has no value per example.
        high: Upper end.
        per_task: Task -> (rise of its part of the objective, low, high); without the ends where a term has no value
            per example.
        error: Why there is no value.
    """

    direction: str
    group: str
    layer: int | None
    kind: str
    coefficient: float
    rise: float | None
    low: float | None = None
    high: float | None = None
    per_task: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    error: str | None = None


class Knockouts:
    """Measures knockouts of one table; the whole of it is measured once, at the beginning.

    Args:
        problem: Opened.
        evaluator: Its normalisers are set.
        table: float64[G, D], over all directions.

    Attributes:
        value: The objective with all coefficients.
        per_task: Task -> its part.
        seconds: That one measurement took.

    Raises:
        RunError: The table cannot be judged.
    """

    def __init__(self, problem: Problem, evaluator: Evaluator, table: Table) -> None:
        self.problem = problem
        self.evaluator = evaluator
        self.table = table
        self.objective = problem.objective.on("select")
        begun = time.perf_counter()
        whole = self._measure(table)
        self.seconds = time.perf_counter() - begun
        if isinstance(whole, Evaluation):
            raise RunError(f"The best recipe cannot be judged on select any more: {whole.error}.")
        self.value, self.per_task = self._combined(whole)
        self._whole = whole

    def without(self, block: Block) -> Knockout:
        """The objective when a block's coefficients are 0."""
        cut = self.table.copy()
        at = slice(None) if block.rows is None else block.rows
        cut[at, block.column] = 0.0
        lost = Knockout(
            self.problem.directions[block.column].name,
            block.group,
            block.layer,
            block.kind,
            coefficient=float(self.table[at, block.column].mean()),
            rise=None,
        )
        found = self._measure(cut)
        if isinstance(found, Evaluation):
            return replace(lost, error=found.error)
        value, parts = self._combined(found)
        if not math.isfinite(value):
            return replace(lost, error=f"the objective is {value}")
        if self.objective.whole:
            falls = {task: (part - self.per_task[task],) for task, part in parts.items()}
            return replace(lost, rise=value - self.value, per_task=falls)
        seed = self.problem.config.seed
        before, after = self._whole.per_example, found.per_example
        rise, low, high = objective_lead(self._value, before, after, seed=seed, resamples=RESAMPLES)
        new, old = (self.objective.by_example("select", arrays) for arrays in (after, before))
        paired = paired_bootstrap(new, old, seed=seed, resamples=RESAMPLES)
        return replace(lost, rise=rise, low=low, high=high, per_task=dict(paired.per_task))

    def _measure(self, table: Table) -> Measurement | Evaluation:
        def work() -> Measurement:
            return self.evaluator.measure(table, "select", objective=True, per_example=True)

        return self.evaluator.attempt(work, "select")

    def _combined(self, measured: Measurement) -> tuple[float, dict[str, float]]:
        return self.objective.combine("select", measured.means, measured.parts)

    def _value(self, means: Means) -> float:
        return self.objective.combine("select", means)[0]


def choose_blocks(problem: Problem, table: Table, columns: Sequence[int], passes: int) -> tuple[str, list[Block]]:
    """The finest division of the groups whose ablation takes at most so many passes, and its blocks.

    Args:
        problem: Opened.
        table: float64[G, D]; what is 0 already is no block.
        columns: Directions.
        passes: At most so many blocks.

    Returns:
        "tensor group", "layer and kind", "layer" or "kind"; "" and no block where even kinds are too many.
    """
    for granularity, place in _PLACES.items():
        rows: dict[tuple[str, int | None, str], list[Rows]] = {}
        for group, at in zip(problem.space.groups, problem.space.rows, strict=True):
            rows.setdefault(place(problem, group), []).append(np.arange(at.start, at.stop))
        blocks = [
            Block(column, *where, np.concatenate(pieces))
            for column in columns
            for where, pieces in rows.items()
            if table[np.concatenate(pieces), column].any()
        ]
        if len(blocks) <= passes:
            return granularity, blocks
    return "", []


Place = tuple[str, int | None, str]


def _own(problem: Problem, group: TensorGroup) -> Place:
    return group.name, group.layer, group.kind


def _layer_kind(problem: Problem, group: TensorGroup) -> Place:
    label = _part(problem, group) + (group.kind if group.layer is None else f"layer.{group.layer}.{group.kind}")
    return label, group.layer, group.kind


def _layer(problem: Problem, group: TensorGroup) -> Place:
    if group.layer is None:
        return _part(problem, group) + group.kind, None, group.kind
    return f"{_part(problem, group)}layer.{group.layer}", group.layer, "layer"


def _kind(problem: Problem, group: TensorGroup) -> Place:
    return _part(problem, group) + group.kind, None, group.kind


def _part(problem: Problem, group: TensorGroup) -> str:
    part = problem.family.parameters[group.parameters[0]].role.part
    return "" if part is None else f"{part}."


_PLACES: dict[str, Callable[[Problem, TensorGroup], Place]] = {  # the finest first
    "tensor group": _own,
    "layer and kind": _layer_kind,
    "layer": _layer,
    "kind": _kind,
}
