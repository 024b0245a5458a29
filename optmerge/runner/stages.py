"""The stages of a schedule: what passes from one to the next.

    problem = open_stage(problem, 1)                      # the next stage's driver, space and objective
    table = prolonged(table, before, problem.space)       # the same merge, in finer groups
    seen = chosen_examples(fit_sizes, 32, seed=0)         # what its driver is judged on

A search without a schedule is one stage, numbered 0. Everything here is a function of the search file and the recorded
evaluations, so that a resumed search passes on what an uninterrupted one would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from optmerge.config.schema import SearchConfig
from optmerge.config.stages import StageConfig
from optmerge.merging.coefficients import Table
from optmerge.objective.objective import Objective
from optmerge.records import Candidate, Record, Vector
from optmerge.space.space import SearchSpace

if TYPE_CHECKING:
    from optmerge.runner.fisher import Profile
    from optmerge.runner.problem import Problem

_EXAMPLES = 0x65786D  # tells the generator that chooses examples from the drivers'


@dataclass(frozen=True, eq=False)
class Stage:
    """One stage, opened.

    Attributes:
        settings: What the schedule says of it.
        config: The search as it is in this stage, see `SearchConfig.at_stage`.
        objective: Its objective; the same object as the stage's before, if that has the same terms.
        space: Its search space, likewise, at the configured start.
        profile: What was measured to cut its chunks, where the space asks for it.
    """

    settings: StageConfig
    config: SearchConfig
    objective: Objective
    space: SearchSpace
    profile: Profile | None = None


def open_stage(problem: Problem, number: int) -> Problem:
    """The problem as it is in a stage.

    Args:
        problem: As it is in the stage before ``number``; it must not be used to evaluate any more.
        number: Which stage.
    """
    before, stage = problem.stages[number - 1], problem.stages[number]
    if stage.space is before.space:
        space, engine = problem.space, problem.engine
    else:
        space, engine = stage.space, problem.engine.regrouped(stage.space.row_of, stage.space.cuts)
    return replace(
        problem,
        config=stage.config,
        objective=stage.objective,
        space=space,
        engine=engine,
        earlier=(*problem.earlier, problem.space),
    )


def prolonged(table: Table, before: SearchSpace, after: SearchSpace) -> Table:
    """Coefficients [G, D] of one space's groups as those of another's groups, each a part of one of the first's.

    Every parameter keeps its coefficients to the last bit: a coarse group's row is repeated for all groups in it.
    """
    if before is after or before.groups == after.groups:
        return table
    rows = np.empty(after.num_rows, dtype=np.int64)
    row_of = {name: at for group, at in zip(before.groups, before.rows, strict=True) for name in group.parameters}
    for group, at in zip(after.groups, after.rows, strict=True):
        found = {(row_of[name].start, row_of[name].stop) for name in group.parameters}
        assert len(found) == 1, f"{group.name} is in one group of the coarser space"
        ((start, stop),) = found
        assert stop - start in (1, at.stop - at.start), (
            f"{group.name} is cut alike, or not at all, in the coarser space"
        )
        rows[at] = start if stop - start == 1 else np.arange(start, stop)
    wide: Table = table[rows]
    return wide


def chosen_examples(sizes: Mapping[str, int], count: int | None, *, seed: int) -> dict[str, tuple[int, ...]] | None:
    """Task -> the positions in its fit split that a stage's driver is judged on, in rising order; None is all of them.

    A larger ``count`` gives all that a smaller one gives, and more.

    Args:
        sizes: Task -> examples in its fit split.
        count: At most so many of each task; None is all.
        seed: The run's.
    """
    if count is None or all(size <= count for size in sizes.values()):
        return None
    generator = np.random.Generator(np.random.PCG64([seed, _EXAMPLES]))
    orders = {task: generator.permutation(size) for task, size in sizes.items()}
    return {task: tuple(sorted(order[:count].tolist())) for task, order in orders.items()}


def look_at(candidate: Candidate, chosen: Mapping[str, tuple[int, ...]] | None) -> Candidate:
    """A candidate whose driver knows of the ``chosen`` examples only, judged on them."""
    if chosen is None:
        return candidate
    if candidate.examples is None:
        return replace(candidate, examples=chosen)
    return replace(
        candidate,
        examples={
            task: tuple(chosen[task][position] for position in positions)
            for task, positions in candidate.examples.items()
        },
    )


def measured_curvature(records: Sequence[Record], spaces: Sequence[SearchSpace]) -> Vector | None:
    """The mean squared gradient of the latest stage that followed gradients in the last space's variables.

    Args:
        records: Of the trajectory, up to the beginning of a stage.
        spaces: Of all stages up to that one, which has the last.

    Returns:
        float64[d], or None where no such stage recorded a gradient.
    """
    now = spaces[-1]
    for number in range(len(spaces) - 2, -1, -1):
        if not np.array_equal(spaces[number].index, now.index):
            continue
        total, count = np.zeros(now.dimension), 0
        for record in records:
            if record.stage == number and record.phase == "search" and record.gradient is not None and not record.error:
                total += record.gradient**2
                count += 1
        if count:
            return total / count
    return None
