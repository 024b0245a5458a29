"""The front of a run for people: which merges no other beats on every task, beside the base, the experts and baselines.

    shown = open_front(RunView.open(run))       # None: one task, or nothing was judged yet
    print(shown.markdown())
    evaluations, shares = hypervolume_curve(view)

Of a run that has ended it is front.json; before that, or where none was kept, what fit says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from optmerge.records import EvaluationCount, Record
from optmerge.runner.folder import RunFolder
from optmerge.runner.front import comparable, front_candidates, front_of, parts_of
from optmerge.runner.front_folder import read_front
from optmerge.runner.pareto import Region
from optmerge.tracking.markdown import number, score, signed, table
from optmerge.tracking.rows import mean_metric
from optmerge.tracking.view import RunView

Parts = Mapping[str, float]
SHOWN = 16  # members, where the search file does not say


@dataclass(frozen=True, slots=True)
class Shown:
    """A merge in the tables and pictures of a front.

    Attributes:
        name: ``record 12``, or a baseline's name.
        kind: A member of the front, or what it is compared with.
        select: Task -> its part of the objective on select, lower is better; None where it was not scored.
        report: Task -> the report's metric, higher is better; None likewise.
        value: The objective on select.
        record: The member's record.
        chosen: Whether it is the search's result.
        on_front: Whether no member beats it on select; of baselines False.
    """

    name: str
    kind: str
    select: Parts | None
    report: Parts | None
    value: float | None = None
    record: int | None = None
    chosen: bool = False
    on_front: bool = False


@dataclass(frozen=True, slots=True)
class FrontView:
    """A front, and what it is compared with.

    Attributes:
        tasks: In the order of the search file.
        metric: The report's metric.
        split: Where the front was found.
        final: Whether select and report were scored for it.
        ended: Whether the search has ended.
        evaluated: How many candidates were compared.
        size: How many of them nothing beats on every task.
        members: The best of the first task first.
        marks: Base, experts, and the best of each family of baselines by select.
        experts: Task -> the mark of its expert.
    """

    tasks: tuple[str, ...]
    metric: str
    split: str
    final: bool
    ended: bool
    evaluated: int
    size: int
    members: tuple[Shown, ...]
    marks: tuple[Shown, ...]
    experts: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The same facts as plain data."""
        return asdict(self)

    def behind(self, shown: Shown, task: str) -> float | None:
        """How far a merge's report metric is from that of the task's expert; below zero is behind it."""
        expert = next((mark for mark in self.marks if mark.name == self.experts.get(task)), None)
        if shown.report is None or expert is None or expert.report is None:
            return None
        if task not in shown.report or task not in expert.report:
            return None
        return shown.report[task] - expert.report[task]

    def markdown(self) -> str:
        """Two tables: the objective by task on select (or fit so far), and the report's metric."""
        verb = "is" if self.size == 1 else "are"
        told = (
            f"{self.size} of {self.evaluated} candidates {verb} not beaten by another on every task of the "
            f"{self.split} split"
        )
        if not self.final:
            note = (
                "none of them was scored on report for it (`budget.front` says how many are)"
                if self.ended
                else "select and report are scored for it when the search ends"
            )
            shown = self._select(self.split if self.ended else f"{self.split} so far")
            return f"{told}; {note}.\n\n{shown}\n"
        left = sum(member.on_front for member in self.members)
        told += f"; {len(self.members)} were scored on select, where {left} are not beaten"
        note = (
            "*: the search's result. Lower is better in the first table; in the second, which leaves out what another "
            "member beats on select, higher is better, and in brackets are the points from the task's expert."
        )
        return "\n\n".join([f"{told}.", self._select("select"), self._report(), note]) + "\n"

    def _select(self, split: str) -> str:
        rows = [
            [_label(shown), *(number((shown.select or {}).get(task)) for task in self.tasks), number(shown.value)]
            for shown in (*self.members, *self.marks)
        ]
        return table([f"objective, {split}", *self.tasks, "all"], rows, left=(0,))

    def _report(self) -> str:
        rows = [
            [_label(shown), *(self._cell(shown, task) for task in self.tasks), score(_mean(shown.report))]
            for shown in (*(member for member in self.members if member.on_front), *self.marks)
        ]
        return table([f"{self.metric}, report", *self.tasks, "mean"], rows, left=(0,))

    def _cell(self, shown: Shown, task: str) -> str:
        gap = self.behind(shown, task)
        text = score((shown.report or {}).get(task))
        return text if gap is None else f"{text} ({signed(gap)})"


def open_front(view: RunView) -> FrontView | None:
    """The front of a run; None where there is one task, or no candidate with a part of the objective for each.

    Raises:
        RunError: front.json is damaged.
    """
    tasks = tuple(view.settings.get("tasks") or {})
    if len(tasks) < 2:
        return None
    kept = read_front(RunFolder(view.folder))
    if kept is not None:
        members = [_member(entry, view.metric) for entry in kept["members"]]
        split, evaluated, size = kept["split"], kept["evaluated"], kept["size"]
    else:
        candidates, split = _candidates(view, tasks)
        found, size = front_of(candidates, tasks, count=view.budget.get("front") or SHOWN)
        members = [_so_far(record) for record in found]
        evaluated = len(candidates)
    if not members:
        return None
    first = tasks[0]
    return FrontView(
        tasks=tasks,
        metric=view.metric,
        split=split,
        final=kept is not None,
        ended=view.status in ("finished", "failed"),
        evaluated=evaluated,
        size=size,
        members=tuple(sorted(members, key=lambda member: ((member.select or {})[first], member.record))),
        marks=tuple(_marks(view)),
        experts={task: f"expert:{spec['expert']}" for task, spec in (view.settings.get("tasks") or {}).items()},
    )


def hypervolume_curve(view: RunView) -> tuple[list[int], list[float]] | None:
    """How much of the space between base and ideal the search dominates after so many evaluations.

    The space is the box from the best part of each task that any candidate has reached to the base's parts; a merge
    that is worse than the base on a task dominates nothing of it. One is a merge that is the best on every task.

    Returns:
        Evaluations on fit, and the share in [0, 1]; None where there is one task, or the base was not scored.
    """
    tasks = tuple(view.settings.get("tasks") or {})
    if len(tasks) < 2:
        return None
    candidates, split = _candidates(view, tasks)
    base = view.baselines.get("base", {}).get(split)
    if not candidates or base is None or not comparable(base, tasks):
        return None
    parts, (reference,) = parts_of(candidates, tasks), parts_of([base], tasks)
    shares = Region(parts.min(axis=0), reference).growth(parts)
    count = EvaluationCount()
    made = [count(record) for record in view.records]
    return [made[record.id] for record in candidates], shares.tolist()


def _candidates(view: RunView, tasks: Sequence[str]) -> tuple[list[Record], str]:
    return front_candidates(view.records, tasks, objectives=view.objectives, collapsed=view.collapsed)


def _member(entry: Mapping[str, Any], metric: str) -> Shown:
    report = entry["report"]
    return Shown(
        name=f"record {entry['record']}",
        kind="member",
        select=entry["select"],
        report=None if report is None else {t: v[metric] for t, v in report.items() if metric in v},
        value=entry["value"],
        record=entry["record"],
        chosen=entry["chosen"],
        on_front=entry["on_front"],
    )


def _so_far(record: Record) -> Shown:
    """A candidate while the search goes on; what stands under select is of the split that the front is found on."""
    name = f"record {record.id}"
    return Shown(name, "member", record.per_task, None, record.value, record=record.id, on_front=True)


def _marks(view: RunView) -> list[Shown]:
    marks = []
    for row in view.rows:
        if row.kind == "search" or not (row.chosen or row.family == "expert"):
            continue
        select = view.baselines.get(row.name, {}).get("select")
        report = {task: values[view.metric] for task, values in row.report.items() if view.metric in values}
        parts = None if select is None else select.per_task
        marks.append(Shown(row.name, row.family, parts or None, report or None, row.select))
    return marks


def _label(shown: Shown) -> str:
    return f"{shown.name} *" if shown.chosen else shown.name


def _mean(report: Parts | None) -> float | None:
    return None if report is None else mean_metric({task: {"": value} for task, value in report.items()}, "")
