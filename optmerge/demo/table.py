"""The demo's one table: every baseline and every search on the same report examples, and what beats what.

    table = make_table(plan, {search.name: RunView.open(output / search.name) for search in plan.searches})
    table.markdown(), table.verdicts()

Nothing is left out for being worse. Differences come with paired bootstrap intervals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from optmerge.demo.plan import METHOD, DemoPlan
from optmerge.runner.bootstrap import Interval, paired_bootstrap
from optmerge.runner.folder import RunFolder
from optmerge.tracking.markdown import NONE, number, score, signed, table
from optmerge.tracking.standing import duration

if TYPE_CHECKING:
    from optmerge.records import Vector
    from optmerge.tracking.rows import Row
    from optmerge.tracking.view import RunView

METRIC = "accuracy"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table.

    Attributes:
        name: As in the run: ``base``, ``uniform:0.2``, ``adam-iso-c``.
        title: For people.
        kind: ``ceiling`` (each expert on its own task), ``baseline`` or ``search``.
        per_task: Task -> accuracy on report.
        mean: Their mean.
        select: Objective on select; lower is better.
        objective: Which objective that is.
        evaluations: Fit evaluations; 0 for a baseline.
        seconds: What it took; None where it is shared with others.
        intervals: Rival's name -> mean difference to it with its interval.
    """

    name: str
    title: str
    kind: str
    per_task: dict[str, float]
    mean: float
    select: float | None
    objective: str
    evaluations: int
    seconds: float | None
    intervals: dict[str, Interval]


@dataclass(frozen=True, slots=True)
class DemoTable:
    """The whole table.

    Attributes:
        tasks: Columns.
        lines: In the order in which they are shown.
        uniform: Name of the uniform coefficient that select chooses.
        method: Name of the scale of Iso-C that select chooses.
        report: Report examples a task.
        conclusive: Whether the demo is large enough to claim anything.
    """

    tasks: tuple[str, ...]
    lines: tuple[Line, ...]
    uniform: str
    method: str
    report: int
    conclusive: bool

    def line(self, name: str) -> Line:
        """The line of a baseline or search."""
        return next(line for line in self.lines if line.name == name)

    @property
    def searches(self) -> tuple[Line, ...]:
        """The lines of the searches."""
        return tuple(line for line in self.lines if line.kind == "search")

    @property
    def winner(self) -> Line:
        """The search with the lowest expert-kl on select: what a user without labels would take."""
        able = [line for line in self.searches if line.objective == "expert-kl" and line.select is not None]
        return min(able, key=lambda line: line.select if line.select is not None else np.inf)

    def markdown(self) -> str:
        """The table, and a note on how to read it."""
        head = ["", *self.tasks, "mean", "select", "evaluations", "time", "to uniform", "to Iso-C"]
        rows = [
            [
                line.title,
                *(score(line.per_task[task]) for task in self.tasks),
                f"**{score(line.mean)}**" if line.kind == "search" else score(line.mean),
                _objective(line),
                str(line.evaluations) if line.evaluations else NONE,
                duration(line.seconds) if line.seconds is not None else NONE,
                _told(line.intervals.get(self.uniform)),
                _told(line.intervals.get(self.method)),
            ]
            for line in self.lines
        ]
        note = (
            f"Accuracy on {self.report} labelled report texts a task; nothing is chosen by it. select: the objective "
            "on unlabelled select texts, lower is better (expert-kl is 1 at the base; values of entropy are marked and "
            "are not comparable). to uniform, to Iso-C: mean difference in points to the one that select chooses, with "
            "its 95 % interval (paired bootstrap over report texts). An oracle is chosen by the report itself: nobody "
            "could."
        )
        return f"{table(head, rows, left=(0,))}\n\n{note}"

    def verdicts(self) -> list[str]:
        """What beats what, one sentence a search, then the two claims that the demo is there to check."""
        said = [
            f"{line.title} ({score(line.mean)}) {_compared(line.intervals[self.uniform])} the uniform coefficient that "
            f"select chooses ({score(self.line(self.uniform).mean)}), and {_compared(line.intervals[self.method])} "
            f"data-free Iso-C ({score(self.line(self.method).mean)})."
            for line in self.searches
        ]
        if not self.conclusive:
            return [*said, "This small demo shows that every part works; it is too small to tell the searches apart."]
        return [*said, *(claim.sentence for claim in self.claims())]

    def claims(self) -> list[Claim]:
        """The two things that the whole demo should show, each with whether it does; none for a small one."""
        if not self.conclusive:
            return []
        return [
            Claim(
                "the search over task vectors beats the uniform coefficient that select chooses",
                self.line("adam").intervals[self.uniform].mean > 0,
                self.line("adam").intervals[self.uniform],
            ),
            Claim(
                "the search with Iso-C's direction is not below Iso-C",
                self.line("adam-iso-c").intervals[self.method].mean >= 0,
                self.line("adam-iso-c").intervals[self.method],
            ),
        ]


@dataclass(frozen=True, slots=True)
class Claim:
    """Something the demo should show, and the difference that says whether it does."""

    text: str
    holds: bool
    interval: Interval

    @property
    def sentence(self) -> str:
        """For people; a claim that fails says so first."""
        luck = "" if self.interval.decided else ", within the luck of the report texts"
        return f"{'Holds' if self.holds else 'FAILS'}: {self.text} ({_told(self.interval)} points{luck})."


def make_table(plan: DemoPlan, views: Mapping[str, RunView]) -> DemoTable:
    """Build the table from finished runs.

    Args:
        plan: The demo.
        views: Search name -> its run. Baselines are the first's; all runs score the same ones on the same texts.
    """
    first = views[plan.searches[0].name]
    rows = {row.name: row for row in first.rows if row.kind == "baseline"}
    scores = {name: _scores(first, row) for name, row in rows.items()}
    uniform = _chosen(rows, "uniform")
    method = _chosen(rows, METHOD)
    oracle = _oracle(rows, "uniform")
    rivals = {uniform: scores[uniform], method: scores[method]}
    merges = {"average": "average", uniform: f"{_coefficient(uniform)} (chosen by select)"}
    merges.setdefault(oracle, f"{_coefficient(oracle)} (oracle)")
    merges[method] = f"Iso-C x {method.rpartition(':')[2]}, data-free (chosen by select)"
    lines = [_baseline(plan, rows["base"], "base", {}), _ceiling(plan, rows)]
    lines += [_baseline(plan, rows[f"expert:{task}"], f"expert {task}", {}) for task in plan.tasks]
    lines += [
        _baseline(plan, rows[name], title, _intervals(scores[name], rivals, name)) for name, title in merges.items()
    ]
    for search in plan.searches:
        view = views[search.name]
        row = view.search_row
        assert row is not None, "a finished run has a row for its search"
        assert row.mean is not None
        accuracies = {task: row.report[task][METRIC] for task in plan.tasks}
        lines.append(
            Line(
                search.name,
                search.title,
                "search",
                accuracies,
                row.mean,
                row.select,
                search.objective,
                row.evaluations or 0,
                row.seconds,
                _intervals(_scores(view, row), rivals, search.name),
            )
        )
    return DemoTable(plan.tasks, tuple(lines), uniform, method, plan.report, plan.conclusive)


def _baseline(plan: DemoPlan, row: Row, title: str, intervals: dict[str, Interval]) -> Line:
    accuracies = {task: row.report[task][METRIC] for task in plan.tasks}
    mean = sum(accuracies.values()) / len(accuracies)
    return Line(row.name, title, "baseline", accuracies, mean, row.select, "expert-kl", 0, row.seconds, intervals)


def _intervals(
    mine: Mapping[str, Vector], rivals: Mapping[str, Mapping[str, Vector]], name: str
) -> dict[str, Interval]:
    return {rival: paired_bootstrap(mine, other, seed=0) for rival, other in rivals.items() if rival != name}


def _ceiling(plan: DemoPlan, rows: Mapping[str, Row]) -> Line:
    """Each expert on its own task: what no single model of this size has to reach."""
    own = {task: rows[f"expert:{task}"].report[task][METRIC] for task in plan.tasks}
    mean = sum(own.values()) / len(own)
    return Line("experts", "experts, each on its task", "ceiling", own, mean, None, "", 0, None, {})


def _scores(view: RunView, row: Row) -> dict[str, Vector]:
    """Task -> accuracy of every report example."""
    examples = RunFolder(view.folder).load_examples(row.record) if row.record is not None else None
    assert examples is not None, f"{view.folder} has no report scores of {row.name}"
    return {task: arrays[METRIC] for task, arrays in examples.items()}


def _chosen(rows: Mapping[str, Row], family: str) -> str:
    return next(name for name, row in rows.items() if row.family == family and row.chosen)


def _oracle(rows: Mapping[str, Row], family: str) -> str:
    return max((row for row in rows.values() if row.family == family), key=lambda row: row.mean or 0.0).name


def _coefficient(name: str) -> str:
    return "average" if name == "average" else f"uniform {name.partition(':')[2]}"


def _objective(line: Line) -> str:
    mark = " (entropy)" if line.objective == "entropy" and line.select is not None else ""
    return f"{number(line.select)}{mark}"


def _told(interval: Interval | None) -> str:
    if interval is None:
        return NONE
    return f"{signed(interval.mean)} [{signed(interval.low)}, {signed(interval.high)}]"


def _compared(interval: Interval) -> str:
    word = "is not distinguishable from"
    if interval.decided:
        word = "beats" if interval.low > 0 else "is worse than"
    return f"{word} ({_told(interval)} points)"
