"""Searches on the demo's four experts, and lines of a table about them: what `directions` and `objectives` share.

zoo, plan = demo_zoo(small=False)
view = run(settings(zoo, plan, Size.of(options), folder, objective="entropy"))
line = search_line("entropy", view)
line.over(search_line("expert-kl", other))           # "+1.2 [+0.4, +2.1]" points
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optmerge
from benchmarks.harness import ROOT
from optmerge.demo.plan import DemoPlan, demo_plan
from optmerge.demo.zoo import Zoo, make_zoo
from optmerge.models.cache import cache_dir
from optmerge.records import Vector
from optmerge.runner.bootstrap import Interval, bootstrap, paired_bootstrap
from optmerge.runner.folder import RunFolder
from optmerge.tracking.markdown import score, signed
from optmerge.tracking.rows import Row
from optmerge.tracking.view import RunView

METRIC = "accuracy"
GRID = [0.2, 0.3, 0.4]


@dataclass(frozen=True, slots=True)
class Size:
    """How large everything is; examples are counted per task."""

    steps: int
    fit: int
    batch: int
    select: int
    report: int

    @classmethod
    def of(cls, options: argparse.Namespace) -> Size:
        """The sizes that the options of `size_options` ask for."""
        if options.small:
            return cls(steps=4, fit=16, batch=8, select=16, report=40)
        return cls(steps=options.steps, fit=180, batch=32, select=60, report=options.report)

    def command(self, module: str, *, small: bool) -> str:
        """The command that measures at this size."""
        flags = "--small" if small else f"--steps {self.steps} --report {self.report}"
        return f"python -m benchmarks.{module} {flags}"


def size_options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the options that `Size.of` reads."""
    parser.add_argument("--steps", type=int, default=40, help="Adam steps of each search")
    parser.add_argument("--report", type=int, default=1500, help="report texts a task")
    return parser


def demo_zoo(*, small: bool) -> tuple[Zoo, DemoPlan]:
    """The demo's models and texts, made when they are missing."""
    plan = demo_plan(quick=small)
    return make_zoo(cache_dir(), plan.tasks, plan.recipe), plan


def output(options: argparse.Namespace, name: str, size: Size) -> Path:
    """Where runs of this size are kept."""
    work: Path = options.work or ROOT / "runs" / name
    return work.resolve() / f"steps-{size.steps}-report-{size.report}"


def settings(zoo: Zoo, plan: DemoPlan, size: Size, folder: Path, **changes: Any) -> dict[str, Any]:
    """The content of a search file: tensor-wise expert-kl by Adam over the task vectors; keyword arguments replace."""
    return {
        "base": str(zoo.base),
        "experts": {task: str(zoo.expert(task)) for task in plan.tasks},
        "tasks": {
            task: {"expert": task, "data": str(zoo.data(task)), "label": "label", "max_tokens": plan.recipe.max_tokens}
            for task in plan.tasks
        },
        "space": "tensor-wise",
        "objective": "expert-kl",
        "driver": {"name": "adam", "lr": 0.05, "batch": size.batch, "schedule": "cosine"},
        "splits": {"fit": size.fit, "select": size.select, "report": size.report},
        "baselines": {"grid": GRID},
        "budget": {"evaluations": size.steps, "select_every": 4, "front": 0},
        "output": str(folder),
    } | changes


def run(wanted: Mapping[str, Any], *, terminal: bool = True) -> RunView:
    """A search's run: made, continued, or found finished; with ``terminal`` shown while it goes on."""
    folder = Path(wanted["output"])
    if (folder / "search.yaml").exists():
        optmerge.resume(folder, terminal=terminal)
    else:
        optmerge.search(dict(wanted), terminal=terminal)
    return RunView.open(folder, vectors=False)


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """A line of the table, with what intervals need.

    Attributes:
        title: For people.
        row: As in its run.
        scores: Task -> accuracy of every report text.
    """

    title: str
    row: Row
    scores: Mapping[str, Vector]

    @property
    def tasks(self) -> list[str]:
        """Mean accuracy on each task's report texts."""
        return [score(self.row.report[task][METRIC]) for task in self.scores]

    def mean(self) -> str:
        """Mean accuracy with its interval."""
        found = bootstrap(self.scores, seed=0)
        return f"{score(found.mean)} [{score(found.low)}, {score(found.high)}]"

    def against(self, rival: Line) -> Interval:
        """The paired difference to another line."""
        return paired_bootstrap(self.scores, rival.scores, seed=0)

    def over(self, rival: Line) -> str:
        """The paired difference in points, with its interval."""
        found = self.against(rival)
        return f"{signed(found.mean)} [{signed(found.low)}, {signed(found.high)}]"


def line(title: str, view: RunView, row: Row) -> Line:
    """The line of a row, with the scores that its run keeps."""
    examples = RunFolder(view.folder).load_examples(row.record) if row.record is not None else None
    assert examples is not None, f"{view.folder} has no report scores of {row.name}"
    return Line(title, row, {task: arrays[METRIC] for task, arrays in examples.items()})


def search_line(title: str, view: RunView) -> Line:
    """The line of what a search found."""
    assert view.search_row is not None, f"{view.folder} has no result"
    return line(title, view, view.search_row)


def baseline_lines(title: str, family: str, view: RunView) -> list[Line]:
    """What select chooses of a family of baselines, and what the report would choose if that is another."""
    members = [row for row in view.rows if row.kind == "baseline" and row.family == family]
    chosen, oracle = next(row for row in members if row.chosen), next(row for row in members if row.oracle)
    lines = [line(title, view, chosen)]
    return lines if oracle.name == chosen.name else [*lines, line(f"{title} (oracle)", view, oracle)]


def experts_of(view: RunView, tasks: list[str]) -> list[str]:
    """Every expert's accuracy on its own task, and their mean."""
    rows = {row.name: row for row in view.rows}
    own = [rows[f"expert:{task}"].report[task][METRIC] for task in tasks]
    return [score(value) for value in (*own, sum(own) / len(own))]
