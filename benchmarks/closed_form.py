"""Coefficients in closed form, on the demo's four experts: which form helps, and by how much.

    make bench-closed-form

Least squares on the experts' layer outputs (`baselines.closed_form`), per tensor, per layer and for the whole model,
with every emphasis and strength, by the objective on the unlabelled select split; the best of each form also by
accuracy on labelled report texts, beside uniform task arithmetic. The search after them takes one step. Runs are kept
in --work, so a second start finds what is finished; the tables are printed and written to RESULT.md there. The experts
are the demo's (made when they are missing; 131 MB are downloaded once).
"""

from __future__ import annotations

from benchmarks.demo_searches import Size, baseline_lines, demo_zoo, line, output, run, settings, size_options
from benchmarks.harness import machine, parser
from optmerge.atomic import atomic_write
from optmerge.tracking.markdown import NONE, number, score, table
from optmerge.tracking.view import RunView

UNIFORM = "uniform task arithmetic"
GRID = [0.2, 0.25, 0.3, 0.4]
FORMS = {"model": "whole model", "layer": "layer", "group": "tensor"}
EMPHASES = [0.0, 1.0, 2.0]
RIDGES = [0.0, 0.1, 1.0]


def best_table(view: RunView) -> str:
    """The best of each form on select, beside the best uniform coefficient."""
    uniform = baseline_lines(UNIFORM, "uniform", view)[0]
    tasks = list(uniform.scores)
    rows = [[UNIFORM, uniform.row.name, *uniform.tasks, score(uniform.row.mean), number(uniform.row.select), NONE]]
    for row in view.rows:
        if row.family == "closed-form":
            form = FORMS[row.name.split(":")[1]]
            found = line(f"closed form, {form}", view, row)
            told = [found.title, row.name, *found.tasks, score(row.mean), number(row.select), found.over(uniform)]
            rows.append(told)
    return table(["", "recipe", *tasks, "mean", "select KL", "to uniform"], rows, left=(0, 1))


def select_table(view: RunView) -> str:
    """Every form, emphasis and strength by its objective on select."""
    values = {record.name: record.value for record in view.records if record.split == "select" and record.name}
    rows = [
        [FORMS[form], f"{emphasis:g}", *(number(values.get(f"closed-form:{form}:{emphasis:g}:{r:g}")) for r in RIDGES)]
        for form in FORMS
        for emphasis in EMPHASES
    ]
    return table(["coefficients per", "emphasis", *(f"ridge {ridge:g}" for ridge in RIDGES)], rows, left=(0,))


def markdown(view: RunView, size: Size, command: str) -> str:
    """The tables and how to read them."""
    cost = sum(
        sum(record.seconds.values())
        for record in view.records
        if record.split == "select" and (record.name or "").startswith("closed-form:")
    )
    return (
        f"### Closed-form coefficients, on the demo's experts\n\n{best_table(view)}\n\n{select_table(view)}\n\n"
        f"- Command: `{command}`\n"
        f"- {size.report} labelled report texts a task, {size.select} select and {size.fit} fit texts without labels. "
        "Every recipe is chosen by select.\n"
        "- select KL: 1 at the base, lower is better. Differences in points of mean accuracy, with their 95 % interval "
        "(paired bootstrap over report texts, stratified by task).\n"
        f"- Scoring all of them on select took {cost:.0f} s.\n"
        f"- {machine()}\n"
    )


def main() -> None:
    """Run what is missing, print the tables and write them down."""
    options = size_options(parser(__doc__, default="runs/closed-form")).parse_args()
    size = Size.of(options)
    zoo, plan = demo_zoo(small=options.small)
    folder = output(options, "closed-form", size)
    closed = {"closed_form": True, "closed_form_emphasis": EMPHASES, "closed_form_ridge": RIDGES}
    wanted = settings(zoo, plan, size, folder / "run", baselines={"grid": GRID, **closed}, budget={"evaluations": 1})
    view = run(wanted)
    told = markdown(view, size, size.command("closed_form", small=options.small))
    atomic_write(folder / "RESULT.md", told)
    print(told)


if __name__ == "__main__":
    main()
