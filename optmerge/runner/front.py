"""The Pareto front of a search: which merges nothing beats on every task, whatever the driver minimised.

    front = score_front(records, score, tasks=["code", "news"], count=16, finalists=finalists)
    front.to_dict()                                                    # the content of front.json
    candidates, split = front_candidates(records, tasks)      # while the search goes on

Fit decides which candidates are on the front. At most ``budget.front`` of them, thinned so that they stand for all, are
scored on select when the search ends; of these, the ones that nothing beats there either are scored on report, once.
What was scored before is not scored again. Nothing of it steers anything: the result stays select's choice.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from optmerge.records import Evaluation, Record, SplitName, Vector
from optmerge.runner.alarms import COLLAPSE
from optmerge.runner.finalists import judged_alike
from optmerge.runner.pareto import non_dominated, thin
from optmerge.runner.result import Scored

log = logging.getLogger(__name__)

FORMAT = 1
Score = Callable[[str, Record, SplitName], tuple[Record, Evaluation]]
"""Scores the vector of a record on a split, under a name: the recorded score if there is one."""
Split = Literal["fit", "select"]
Merge = tuple[int, str | None]


@dataclass(frozen=True, slots=True)
class Member:
    """A merge of the front.

    Attributes:
        candidate: Its record on the split that the front was found on.
        select: Its record on the select split.
        report: Its record on the report split, of members that are on the front; None where that failed.
        on_front: Whether no other member beats it on select, on every task.
        chosen: Whether it is the search's result.
    """

    candidate: Record
    select: Record
    report: Record | None
    on_front: bool
    chosen: bool

    def to_dict(self, tasks: Sequence[str], split: Split) -> dict[str, Any]:
        """The member for front.json: per-task parts of the objective, and the report's metrics."""
        fit = None
        if split == "fit" and self.candidate.split == "fit":
            fit = {task: self.candidate.per_task[task] for task in tasks}
        return {
            "record": self.candidate.id,
            "chosen": self.chosen,
            "on_front": self.on_front,
            "fit": fit,
            "select": {task: self.select.per_task[task] for task in tasks},
            "value": self.select.value,
            "select_record": self.select.id,
            "report": None if self.report is None else {t: dict(v) for t, v in self.report.metrics.items()},
            "report_record": None if self.report is None else self.report.id,
        }


@dataclass(frozen=True, slots=True)
class Front:
    """What a search knows of its front at its end.

    Attributes:
        tasks: Whose parts of the objective are compared.
        split: Where the front was found: fit, or select where no candidate was judged on all fit examples.
        evaluated: How many candidates were compared.
        size: How many of them nothing beats on every task.
        members: Those that were scored, in the order of their records.
    """

    tasks: tuple[str, ...]
    split: Split
    evaluated: int
    size: int
    members: tuple[Member, ...]

    def to_dict(self) -> dict[str, Any]:
        """The content of front.json."""
        return {
            "format": FORMAT,
            "tasks": list(self.tasks),
            "split": self.split,
            "evaluated": self.evaluated,
            "size": self.size,
            "members": [member.to_dict(self.tasks, self.split) for member in self.members],
        }


def front_candidates(
    records: Sequence[Record], tasks: Sequence[str], *, objectives: Sequence[Any] = (), collapsed: bool = False
) -> tuple[list[Record], Split]:
    """The records whose parts can be compared, each vector once, and the split that they are of.

    These are all candidates that were judged on the whole fit split. Where a driver saw parts of it only, they are the
    iterates that were scored on select.

    Args:
        records: Of a trajectory.
        tasks: Every one must have a finite part.
        objectives: Of each stage of a schedule; only candidates that the last one's objective judged are compared.
        collapsed: Whether iterates that an alarm calls collapsed may be among them.
    """
    able = [r for r in records if comparable(r, tasks) and (collapsed or COLLAPSE not in r.alarms)]
    selected = [record for record in able if record.phase == "select"]
    if objectives:
        alike = judged_alike(objectives, max((record.stage for record in selected), default=0))
        able, selected = ([r for r in some if r.stage in alike] for some in (able, selected))
    whole = [record for record in able if record.phase == "search" and record.examples == "all"]
    distinct: dict[Merge, Record] = {}
    for record in whole or selected:
        distinct.setdefault(merge_of(record), record)
    return list(distinct.values()), "fit" if whole else "select"


def merge_of(record: Record) -> Merge:
    """What two records of the same merge have in common; vectors of different stages are of different spaces."""
    return record.stage, record.vector_sha256


def comparable(record: Record, tasks: Sequence[str]) -> bool:
    """Whether a record has a finite value, and a finite part for each of ``tasks``."""
    parts = [record.per_task.get(task, math.nan) for task in tasks]
    return record.error is None and record.value is not None and all(map(math.isfinite, parts))


def parts_of(records: Sequence[Record], tasks: Sequence[str]) -> Vector:
    """The tasks' parts of the objective, float64[n, tasks]."""
    parts = [[record.per_task[task] for task in tasks] for record in records]
    return np.array(parts, dtype=np.float64).reshape(len(records), len(tasks))


def front_of(candidates: Sequence[Record], tasks: Sequence[str], *, count: int) -> tuple[list[Record], int]:
    """At most ``count`` records that stand for those which none of ``candidates`` beats, and how many these are."""
    parts = parts_of(candidates, tasks)
    able = np.flatnonzero(non_dominated(parts))
    kept = able[thin(parts[able], count)]
    return [candidates[position] for position in kept], len(able)


def score_front(
    records: Sequence[Record],
    score: Score,
    *,
    tasks: Sequence[str],
    count: int,
    finalists: Sequence[Scored],
    objectives: Sequence[Any] = (),
    collapsed: bool = False,
) -> Front | None:
    """The front of a search that has ended, scored on select, and on report what select leaves of it.

    The search's result is among the members whatever fit says of it, so that it can be compared.

    Args:
        records: The search's, up to its end.
        score: Scores a candidate; it is called in an order that only ``records`` decide.
        tasks: All of the search.
        count: The most members beside the result; 0 is no front.
        finalists: What is scored on report already, the result first.
        objectives: See `front_candidates`.
        collapsed: See `front_candidates`.

    Returns:
        The front; None where there is none to speak of: of one task, or when it is not wanted.
    """
    candidates, split = front_candidates(records, tasks, objectives=objectives, collapsed=collapsed)
    if count == 0 or len(tasks) < 2 or not candidates:
        return None
    kept, size = front_of(candidates, tasks, count=count)
    winner = finalists[0].select
    result = merge_of(winner)
    if result not in map(merge_of, kept):
        known = {merge_of(record): record for record in candidates}
        kept = sorted([*kept, known.get(result, winner)], key=lambda record: record.id)
    iterates = {merge_of(r): r for r in records if r.phase == "select" and comparable(r, tasks)}
    selected: list[tuple[Record, Record]] = []
    for record in kept:
        select = iterates.get(merge_of(record)) or score(_name(record), record, "select")[0]
        if comparable(select, tasks):
            selected.append((record, select))
        else:
            log.warning("the candidate of record %d failed on select and is not on the front", record.id)
    parts = parts_of([select for _, select in selected], tasks)
    able = np.zeros(len(selected), dtype=bool)
    order = sorted(range(len(selected)), key=lambda at: merge_of(selected[at][0]) != result)
    able[order] = non_dominated(parts[order])  # of equal merges the first one, and the result is the first of all
    reported = {merge_of(scored.select): scored.report for scored in finalists}
    members = []
    for (record, select), alone in zip(selected, able, strict=True):
        report = None
        if alone:
            report = reported.get(merge_of(record)) or score(_name(record), record, "report")[0]
            if report.error is not None:
                log.warning("the candidate of record %d failed on report: %s", record.id, report.error)
                report = None
        members.append(Member(record, select, report, bool(alone), merge_of(record) == result))
    return Front(tuple(tasks), split, len(candidates), size, tuple(members))


def _name(record: Record) -> str:
    return f"front:{record.id}"
