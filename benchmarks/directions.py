"""What whole methods are worth as directions of a search, on the demo's four experts.

    make bench-directions

Scored on at least 1,500 labelled report texts a task: uniform task arithmetic, Iso-C, TSV-M and RegMean (each at the
scale that the unlabelled select split chooses), and tensor-wise `expert-kl` searches by Adam over the task vectors
alone and with each of these methods as one direction more. Runs are kept in --work, so a second start finds what
is finished; the table is printed and written to RESULT.md there. The experts are the demo's (made when they are
missing; 131 MB are downloaded once).
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.demo_searches import (
    GRID,
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
from optmerge.tracking.markdown import NONE, number, score, table
from optmerge.tracking.view import RunView

METHODS = {"iso-c": "Iso-C", "tsv-m": "TSV-M", "regmean": "RegMean"}
METHOD_GRID = [1.0, 1.4, 1.8]
UNIFORM = "uniform task arithmetic"
ALONE = "search: task vectors"


def lines_of(views: Mapping[str, RunView]) -> dict[Line, tuple[str, ...]]:
    """Line -> titles of what it is compared with: baselines (the first run's; all runs score the same), searches."""
    first = next(iter(views.values()))
    lines: dict[Line, tuple[str, ...]] = {}
    for family, title in {"uniform": UNIFORM, **METHODS}.items():
        for found in baseline_lines(title, family, first):
            lines[found] = () if family == "uniform" else (UNIFORM,)
    for name, view in views.items():
        if name in METHODS:
            lines[search_line(f"{ALONE} + {METHODS[name]}", view)] = (UNIFORM, ALONE, METHODS[name])
        else:
            lines[search_line(ALONE, view)] = (UNIFORM,)
    return lines


def markdown(views: Mapping[str, RunView], size: Size, command: str) -> str:
    """The table and how to read it."""
    first = next(iter(views.values()))
    base = line("base", first, next(row for row in first.rows if row.name == "base"))
    tasks = list(base.scores)
    head = ["", "recipe", *tasks, "mean", "select KL", "to uniform", "to task vectors alone", "to the method alone"]
    lines = lines_of(views)
    by_title = {found.title: found for found in lines}
    rows = [
        ["base", NONE, *base.tasks, score(base.row.mean), number(base.row.select), *[NONE] * 3],
        ["experts, each on its task", NONE, *experts_of(first, tasks), *[NONE] * 4],
    ]
    for found, rivals in lines.items():
        row = found.row
        what = row.name if row.kind == "baseline" else f"{row.evaluations} steps"
        told = [found.over(by_title[rival]) for rival in rivals]
        rows.append([found.title, what, *found.tasks, score(row.mean), number(row.select), *(told + [NONE] * 3)[:3]])
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


def main() -> None:
    """Run what is missing, print the table and write it down."""
    options = size_options(parser(__doc__, default="runs/directions")).parse_args()
    size = Size.of(options)
    zoo, plan = demo_zoo(small=options.small)
    folder = output(options, "directions", size)
    baselines = {"grid": GRID, "methods": list(METHODS), "method_grid": METHOD_GRID}
    wanted = {"task-vectors": ["experts"]} | {name: ["experts", name] for name in METHODS}
    views = {
        name: run(settings(zoo, plan, size, folder / name, directions=directions, baselines=baselines))
        for name, directions in wanted.items()
    }
    told = markdown(views, size, size.command("directions", small=options.small))
    atomic_write(folder / "RESULT.md", told)
    print(told)


if __name__ == "__main__":
    main()
