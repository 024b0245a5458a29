"""Whether 32 chosen inputs do the work of 128 random ones, on the demo's four experts.

    make bench-selection

Tensor-wise `expert-kl` searches by Adam, all from task arithmetic at 0.3 with the same steps and batches: over 32 fit
texts a task chosen by `sampling: diverse`, over 32 random ones and over 128 random ones. Each is done three times, on
other texts: a seed leaves out a part of every task's data, never of its report texts, which are the same for all. Runs
are kept in --work, so a second start finds what is finished; the table is printed and written to RESULT.md there. The
experts are the demo's (made when they are missing; 131 MB are downloaded once).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.demo_searches import Line, Size, demo_zoo, output, run, search_line, settings, size_options
from benchmarks.harness import machine, parser
from optmerge.atomic import atomic_write
from optmerge.calibration.splits import content_key
from optmerge.records import Vector
from optmerge.tracking.markdown import NONE, score, table

SEEDS = (0, 1, 2)
START = 0.3
LEFT_OUT = 0.4  # of the texts that are not in report
POOL = 800
DIVERSE: dict[str, Any] = {"name": "diverse", "pool": POOL}
SIDES: dict[str, tuple[int, str | dict[str, Any]]] = {  # name -> fit texts a task, sampling
    "diverse-32": (32, DIVERSE),
    "random-32": (32, "random"),
    "random-128": (128, "random"),
}


def thinned(data: Path, to: Path, *, report: int, seed: int) -> Path:
    """A task's data without a part of what is not in its report split, which stays as it is.

    Args:
        data: JSON lines with ``text``.
        to: The file that is written.
        report: Texts in report: those whose content hashes come first.
        seed: Which part is left out.
    """
    rows = {content_key(row["text"], None): row for row in map(json.loads, data.read_text("utf-8").split("\n")[:-1])}
    ordered = sorted(rows)
    rest = ordered[report:]
    kept = np.random.default_rng(seed).permutation(len(rest))[: round((1 - LEFT_OUT) * len(rest))]
    lines = [json.dumps(rows[key]) for key in [*ordered[:report], *(rest[place] for place in sorted(kept))]]
    atomic_write(to, "\n".join(lines) + "\n")
    return to


def over_seeds(title: str, lines: list[Line]) -> Line:
    """A line whose scores are those of several, averaged text by text."""
    scores: dict[str, Vector] = {
        task: np.stack([entry.scores[task] for entry in lines]).mean(0) for task in lines[0].scores
    }
    return replace(lines[0], title=title, scores=scores)


def markdown(found: Mapping[str, list[Line]], size: Size, command: str) -> str:
    """The table and how to read it."""
    means = {name: over_seeds(name, lines) for name, lines in found.items()}
    tasks = list(means["diverse-32"].scores)
    head = ["fit texts", *tasks, "mean [95 %]", *(f"seed {seed}" for seed in SEEDS), *(f"to {name}" for name in SIDES)]
    rows = []
    for name, line in means.items():
        seeds = [np.mean([values.mean() for values in entry.scores.values()]) for entry in found[name]]
        rows.append(
            [
                name,
                *(score(float(values.mean())) for values in line.scores.values()),
                line.mean(),
                *(score(float(value)) for value in seeds),
                *(NONE if other == name else line.over(rival) for other, rival in means.items()),
            ]
        )
    return (
        f"### Chosen and random inputs, on the demo's experts\n\n{table(head, rows, left=(0,))}\n\n"
        f"- Command: `{command}`\n"
        f"- {size.report} labelled report texts a task, {size.select} select texts, {size.steps} Adam steps of "
        f"{size.batch} texts a task, tensor-wise expert-kl from {START:g}. `diverse` chooses fit and select from a "
        f"pool of {POOL} texts a task.\n"
        f"- Accuracies are means over {len(SEEDS)} seeds, which differ in the texts that fit and select are drawn "
        "from. Differences in points of mean accuracy with their 95 % interval (paired bootstrap over report texts, "
        "stratified by task; what differs between seeds stands in their columns).\n"
        f"- {machine()}\n"
    )


def main() -> None:
    """Run what is missing, print the table and write it down."""
    options = size_options(parser(__doc__, default="runs/selection")).parse_args()
    size = Size.of(options)
    zoo, plan = demo_zoo(small=options.small)
    folder = output(options, "selection", size)
    found: dict[str, list[Line]] = {name: [] for name in SIDES}
    for seed in SEEDS:
        data = {
            task: thinned(zoo.data(task), folder / "data" / f"{task}-{seed}.jsonl", report=size.report, seed=seed)
            for task in plan.tasks
        }
        for name, (fit, sampling) in SIDES.items():
            wanted = settings(zoo, plan, replace(size, fit=fit), folder / f"{name}-{seed}", seed=seed)
            wanted["space"] = {"preset": "tensor-wise", "start": START}
            wanted["baselines"] = {"grid": [START]}
            for task, spec in wanted["tasks"].items():
                spec |= {"data": str(data[task]), "sampling": sampling}
            found[name].append(search_line(name, run(wanted)))
    told = markdown(found, size, size.command("selection", small=options.small))
    atomic_write(folder / "RESULT.md", told)
    print(told)


if __name__ == "__main__":
    main()
