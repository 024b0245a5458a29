"""What each objective is worth on the demo's four experts, and what it costs.

    make bench-objectives

One tensor-wise search by Adam per objective, all from the same start (task arithmetic at 0.3) with the same steps,
scored on at least 1,500 labelled report texts a task; beside them the uniform coefficient that select chooses by
expert-kl, and the one that the report would choose. Runs are kept in --work, so a second start finds what is finished;
the table is printed and written to RESULT.md there. The experts are the demo's (made when they are missing; 131 MB are
downloaded once).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.demo_searches import (
    Line,
    Size,
    baseline_lines,
    demo_zoo,
    experts_of,
    line,
    output,
    run,
    search_line,
    settings,
    size_options,
)
from benchmarks.harness import machine, parser
from optmerge.atomic import atomic_write
from optmerge.runner.alarms import raised_alarms
from optmerge.tracking.markdown import NONE, score, signed, table
from optmerge.tracking.view import RunView

START = 0.3
UNIFORM = [0.2, 0.25, 0.3, 0.35, 0.4]


@dataclass(frozen=True, slots=True)
class Search:
    """One line of the table.

    Attributes:
        title: For people.
        objective: A preset's name, or an objective.
        space: A preset's name.
        changes: Of the search file.
        lr: Adam's learning rate.
    """

    title: str
    objective: Any
    space: str = "tensor-wise"
    lr: float = 0.05
    changes: Mapping[str, Any] = field(default_factory=dict)


SEARCHES = {
    "expert-kl": Search("expert-kl", "expert-kl"),
    "jensen-shannon": Search("jensen-shannon", {"terms": [{"name": "jensen-shannon"}]}),
    "pseudo-label": Search("pseudo-label", "pseudo-label"),
    "expert-alignment": Search("expert-alignment", "expert-alignment"),
    "expert-merging-pp": Search("expert-merging-pp, chunk-wise", "expert-merging-pp", space="chunk-wise"),
    "dam": Search("dam, tensor-wise", "dam"),
    "dam-column-wise": Search("dam, column-wise", "dam", space="column-wise", lr=0.01),
    "information-maximisation": Search("information-maximisation", "information-maximisation"),
    "entropy": Search("entropy", "entropy"),
    "entropy-fast": Search("entropy, lr 0.2", "entropy", lr=0.2),
    "entropy-guarded": Search("entropy-guarded", "entropy-guarded"),
    "entropy-guarded-fast": Search("entropy-guarded, lr 0.2", "entropy-guarded", lr=0.2),
    "cross-entropy": Search("cross-entropy (reads labels)", "cross-entropy"),
    "accuracy": Search(
        "accuracy (reads labels), task-wise, CMA-ES",
        "accuracy",
        space="task-wise",
        changes={"driver": {"name": "cma", "sigma": 0.1}},
    ),
}


def passes(view: RunView, size: Size) -> int:
    """Texts that the search sent through the model: fit and select, without baselines and the report."""
    tasks = len(view.settings["tasks"])
    looked = 0
    for record in view.records:
        if record.phase == "search":
            looked += tasks * (size.fit if record.examples == "all" else size.batch)
        elif record.phase == "select":
            looked += tasks * size.select
    return looked


def alarm(view: RunView) -> str:
    """The first alarm of a run, and when."""
    alarms = raised_alarms(view.records)
    return f"{alarms[0].kind} at {alarms[0].evaluations}" if alarms else NONE


def markdown(views: Mapping[str, RunView], size: Size, command: str) -> str:
    """The table and how to read it."""
    first = views["expert-kl"]
    rows_of = {row.name: row for row in first.rows}
    base = line("base", first, rows_of["base"])
    start = line("start", first, rows_of[f"uniform:{START:g}"])
    uniform = baseline_lines("uniform coefficient", "uniform", first)
    chosen, tasks = uniform[0], list(base.scores)
    head = ["", *tasks, "mean [95 %]", "to uniform", "worst task to uniform", "to start", "seconds", "texts", "alarm"]
    rows = [
        ["base", *base.tasks, score(base.row.mean), *[NONE] * 6],
        ["experts, each on its task", *experts_of(first, tasks), *[NONE] * 6],
        [f"start: {START:g} everywhere", *start.tasks, start.mean(), start.over(chosen), *[NONE] * 5],
    ]
    for entry in uniform:
        told = NONE if entry is chosen else entry.over(chosen)
        rows.append([f"{entry.title}, {entry.row.name}", *entry.tasks, entry.mean(), told, *[NONE] * 5])
    for name, view in views.items():
        found = search_line(SEARCHES[name].title, view)
        rows.append(_row(found, view, chosen, start, size))
    told = "".join(
        f"- {SEARCHES[name].title}: {found.sentence}.\n"
        for name, view in views.items()
        for found in raised_alarms(view.records)[:1]
    )
    return (
        f"### Objectives, on the demo's experts\n\n{table(head, rows, left=(0,))}\n\n"
        f"- Command: `{command}`\n"
        f"- {size.report} labelled report texts a task, {size.select} select and {size.fit} fit texts, {size.batch} a "
        f"task and step, {size.steps} Adam steps at learning rate 0.05 where the line does not say otherwise. The "
        "uniform coefficient and, unless an objective says otherwise, every iterate is chosen by the objective on "
        "select; an oracle is chosen by the report, as nobody could.\n"
        "- Differences in points of mean accuracy with their 95 % interval (paired bootstrap over report texts, "
        "stratified by task); worst task: the task with the least difference.\n"
        "- seconds: of the search, without baselines; texts: what fit and select sent forward, in thousands. A first "
        "look without gradients, which some objectives need, is not counted twice.\n"
        f"- alarm: the first one, and after how many evaluations.\n{told}"
        f"- {machine()}\n"
    )


def _row(found: Line, view: RunView, uniform: Line, start: Line, size: Size) -> list[str]:
    against = found.against(uniform)
    task, (worst, low, high) = min(against.per_task.items(), key=lambda item: item[1][0])
    return [
        found.title,
        *found.tasks,
        found.mean(),
        found.over(uniform),
        f"{task} {signed(worst)} [{signed(low)}, {signed(high)}]",
        found.over(start),
        f"{view.search_seconds:.0f}",
        f"{passes(view, size) / 1000:.1f} k",
        alarm(view),
    ]


def main() -> None:
    """Run what is missing, print the table and write it down."""
    options = size_options(parser(__doc__, default="runs/objectives"))
    options.add_argument("--only", nargs="+", choices=list(SEARCHES), default=list(SEARCHES), help="which lines")
    chosen = options.parse_args()
    size = Size.of(chosen)
    zoo, plan = demo_zoo(small=chosen.small)
    folder = output(chosen, "objectives", size)
    views = {}
    for name in dict.fromkeys(["expert-kl", *chosen.only]):
        search = SEARCHES[name]
        driver = {"name": "adam", "lr": search.lr, "batch": size.batch, "schedule": "cosine"}
        space = {"preset": search.space, "start": START}
        common = {"objective": search.objective, "space": space, "driver": driver, "baselines": {"grid": UNIFORM}}
        views[name] = run(settings(zoo, plan, size, folder / name, **(common | dict(search.changes))))
    told = markdown(views, size, size.command("objectives", small=chosen.small))
    atomic_write(folder / "RESULT.md", told)
    print(told)


if __name__ == "__main__":
    main()
