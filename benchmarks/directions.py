"""What whole methods are worth as directions of a search, on the demo's four experts.

    make bench-directions

Scored on at least 1,500 labelled report texts a task: uniform task arithmetic, Iso-C, TSV-M and RegMean (each at the
scale that the unlabelled select split chooses), and tensor-wise `expert-kl` searches by Adam over the task vectors
alone and with each of these methods as one direction more. Runs are kept in --work, so a second start finds what
is finished; the table is printed and written to RESULT.md there. The experts are the demo's (made when they are
missing; 131 MB are downloaded once).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optmerge
from benchmarks.harness import ROOT, machine, parser
from optmerge.atomic import atomic_write
from optmerge.demo.plan import DemoPlan, demo_plan
from optmerge.demo.zoo import Zoo, make_zoo
from optmerge.models.cache import cache_dir
from optmerge.records import Vector
from optmerge.runner.bootstrap import paired_bootstrap
from optmerge.runner.folder import RunFolder
from optmerge.tracking.markdown import NONE, number, score, signed, table
from optmerge.tracking.view import Row, RunView

METHODS = {"iso-c": "Iso-C", "tsv-m": "TSV-M", "regmean": "RegMean"}
GRID = [0.2, 0.3, 0.4]
METHOD_GRID = [1.0, 1.4, 1.8]
METRIC = "accuracy"

Scores = Mapping[str, Vector]


@dataclass(frozen=True, slots=True)
class Size:
    """How large everything is; examples are counted per task."""

    steps: int
    fit: int
    batch: int
    select: int
    report: int


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table, with what intervals need.

    Attributes:
        title: For people.
        row: As in its run.
        scores: Task -> accuracy of every report text.
        rivals: Titles of the lines that it is compared with.
    """

    title: str
    row: Row
    scores: Scores
    rivals: tuple[str, ...]


def settings(zoo: Zoo, plan: DemoPlan, size: Size, directions: list[str], folder: Path) -> dict[str, Any]:
    """The content of one search file."""
    return {
        "base": str(zoo.base),
        "experts": {task: str(zoo.expert(task)) for task in plan.tasks},
        "tasks": {
            task: {"expert": task, "data": str(zoo.data(task)), "label": "label", "max_tokens": plan.recipe.max_tokens}
            for task in plan.tasks
        },
        "directions": directions,
        "space": "tensor-wise",
        "objective": "expert-kl",
        "driver": {"name": "adam", "lr": 0.05, "batch": size.batch, "schedule": "cosine"},
        "splits": {"fit": size.fit, "select": size.select, "report": size.report},
        "baselines": {"grid": GRID, "methods": list(METHODS), "method_grid": METHOD_GRID},
        "budget": {"evaluations": size.steps, "select_every": 4},
        "output": str(folder),
    }


def run(wanted: dict[str, Any]) -> RunView:
    """A search's run: made, continued, or found finished."""
    folder = Path(wanted["output"])
    if (folder / "search.yaml").exists():
        optmerge.resume(folder, terminal=True)
    else:
        optmerge.search(wanted, terminal=True)
    return RunView.open(folder, vectors=False)


def lines_of(views: Mapping[str, RunView]) -> list[Line]:
    """Baselines (the first run's; all runs score the same ones on the same texts), then the searches."""
    first = next(iter(views.values()))
    baselines = {row.name: row for row in first.rows if row.kind == "baseline"}
    lines = [_line("base", first, baselines["base"])]
    for family, title in {"uniform": "uniform task arithmetic", **METHODS}.items():
        members = [row for row in baselines.values() if row.family == family]
        chosen = next(row for row in members if row.chosen)
        rivals: tuple[str, ...] = () if family == "uniform" else ("uniform task arithmetic",)
        lines.append(_line(title, first, chosen, *rivals))
        oracle = next(row for row in members if row.oracle)
        if oracle.name != chosen.name:
            lines.append(_line(f"{title} (oracle)", first, oracle, *rivals))
    for name, view in views.items():
        assert view.search_row is not None, f"{view.folder} has no result"
        title, rivals = "search: task vectors", ("uniform task arithmetic",)
        if name in METHODS:
            title = f"search: task vectors + {METHODS[name]}"
            rivals = ("uniform task arithmetic", "search: task vectors", METHODS[name])
        lines.append(_line(title, view, view.search_row, *rivals))
    return lines


def markdown(lines: list[Line], views: Mapping[str, RunView], size: Size, command: str) -> str:
    """The table and how to read it."""
    tasks = list(lines[0].scores)
    first = next(iter(views.values()))
    own = {task: _row(first, f"expert:{task}").report[task][METRIC] for task in tasks}
    head = ["", "recipe", *tasks, "mean", "select KL", "to uniform", "to task vectors alone", "to the method alone"]
    rows = []
    by_title = {line.title: line for line in lines}
    for line in lines:
        told = [_interval(line, by_title[rival]) for rival in line.rivals]
        what = line.row.name if line.row.kind == "baseline" else f"{line.row.evaluations} steps"
        accuracies = [score(line.row.report[task][METRIC]) for task in tasks]
        rows.append(
            [line.title, what, *accuracies, score(line.row.mean), number(line.row.select), *(told + [NONE] * 3)[:3]]
        )
    ceiling = [score(value) for value in (*own.values(), sum(own.values()) / len(own))]
    rows.insert(1, ["experts, each on its task", NONE, *ceiling, *[NONE] * 4])
    seconds = ", ".join(f"{name} {view.search_seconds:.0f} s" for name, view in views.items())
    return (
        f"### Directions of a search, on the demo's experts\n\n{table(head, rows, left=(0, 1))}\n\n"
        f"- Command: `{command}`\n"
        f"- {size.report} labelled report texts a task, {size.select} select and {size.fit} fit texts without labels, "
        f"{size.batch} a task and step. Every scale and every iterate is chosen by select; an oracle is chosen by the "
        "report, as nobody could.\n"
        "- select KL: 1 at the base, lower is better. Differences in points of mean accuracy, with their 95 % interval "
        "(paired bootstrap over report texts, stratified by task).\n"
        f"- Time of the searches without baselines: {seconds}.\n"
        f"- {machine()}\n"
    )


def sizes(options: argparse.Namespace) -> Size:
    """The sizes that the options ask for."""
    if options.small:
        return Size(steps=4, fit=16, batch=8, select=16, report=40)
    return Size(steps=options.steps, fit=180, batch=32, select=60, report=options.report)


def main() -> None:
    """Run what is missing, print the table and write it down."""
    options = parser(__doc__, default="runs/directions")
    options.add_argument("--steps", type=int, default=40, help="Adam steps of each search")
    options.add_argument("--report", type=int, default=1500, help="report texts a task")
    chosen = options.parse_args()
    size, plan = sizes(chosen), demo_plan(quick=chosen.small)
    zoo = make_zoo(cache_dir(), plan.tasks, plan.recipe)
    output = (chosen.work or ROOT / "runs" / "directions").resolve() / f"steps-{size.steps}-report-{size.report}"
    wanted = {"task-vectors": ["experts"]} | {name: ["experts", name] for name in METHODS}
    views = {name: run(settings(zoo, plan, size, directions, output / name)) for name, directions in wanted.items()}
    flags = " --small" if chosen.small else f" --steps {size.steps} --report {size.report}"
    told = markdown(lines_of(views), views, size, f"python -m benchmarks.directions{flags}")
    atomic_write(output / "RESULT.md", told)
    print(told)


def _line(title: str, view: RunView, row: Row, *rivals: str) -> Line:
    examples = RunFolder(view.folder).load_examples(row.record) if row.record is not None else None
    assert examples is not None, f"{view.folder} has no report scores of {row.name}"
    return Line(title, row, {task: arrays[METRIC] for task, arrays in examples.items()}, rivals)


def _row(view: RunView, name: str) -> Row:
    return next(row for row in view.rows if row.name == name)


def _interval(line: Line, rival: Line) -> str:
    found = paired_bootstrap(line.scores, rival.scores, seed=0)
    return f"{signed(found.mean)} [{signed(found.low)}, {signed(found.high)}]"


if __name__ == "__main__":
    main()
