"""Every merging method that fits, at its published settings, beside short searches: one leaderboard a suite.

    make bench-leaderboard

On the three suites of `quality_suites` (the demo's text classifiers, small ViTs, byte-level Llamas): base, experts,
uniform merges and all methods by `optmerge baseline`, and in the same table tensor-wise `expert-kl` by Adam over the
task vectors, the same with Iso-C as one direction more, and layer-wise `expert-kl` by CMA-ES. Everything is kept in
--work, so that an interrupted measurement goes on, and a second start only writes the tables again. At full size they
go to runs/examples/leaderboard, with --small to --work. The demo's models are made when they are missing (131 MB are
downloaded once).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from benchmarks.demo_searches import run
from benchmarks.harness import ROOT, machine, parser
from benchmarks.quality_suites import SUITES, Suite
from optmerge.atomic import atomic_write
from optmerge.config.load import build_config
from optmerge.runner.board import Leaderboard
from optmerge.runner.leaderboard import measure_leaderboard
from optmerge.tracking.leaderboard import board_figure, board_markdown
from optmerge.tracking.plots import save_figure

EXAMPLES = ROOT / "runs" / "examples" / "leaderboard"
STEPS = 60  # of Adam, and evaluations of CMA-ES
SELECT_EVERY = 4


def searches(suite: Suite, folder: Path, steps: int) -> list[Path]:
    """Folders of the finished searches that stand beside the methods."""
    adam = {"name": "adam", "lr": 0.05, "batch": min(16, suite.fit), "schedule": "cosine"}
    kinds: dict[str, dict[str, Any]] = {
        "task-vectors": {"space": "tensor-wise", "driver": adam},
        "task-vectors-and-iso-c": {"space": "tensor-wise", "driver": adam, "directions": ["experts", "iso-c"]},
        "layer-wise": {"space": "layer-wise", "driver": "cma"},
    }
    budget = {"evaluations": steps, "select_every": SELECT_EVERY, "finalists": 1, "front": 0}
    return [
        run(suite.search(folder / name, objective="expert-kl", budget=budget, **kind), terminal=False).folder
        for name, kind in kinds.items()
    ]


def measure(suite: Suite, folder: Path, *, steps: int, tune: int | None) -> Leaderboard:
    """One suite's leaderboard: what is missing is measured."""
    against = searches(suite, folder, steps)
    config = build_config(suite.search(folder / "unused", objective="expert-kl"), root=folder)
    with Progress(transient=True) as bar:
        tasks = {stage: bar.add_task(f"{suite.name}: {stage}", total=None) for stage in ("baselines", "methods")}

        def progress(stage: str, done: int, total: int | None) -> None:
            if stage in tasks:
                bar.update(tasks[stage], completed=done, total=total)

        return measure_leaderboard(
            config, root=folder, folder=folder / "leaderboard", tune=tune, against=against, progress=progress
        )


def write(suite: Suite, board: Leaderboard, to: Path, notes: list[str]) -> None:
    """Write a suite's page and its bars."""
    title = f"Leaderboard: {suite.title}"
    sizes = f"{suite.fit} fit, {suite.select} select and {suite.report} report examples a task"
    page = board_markdown(board, title=title, picture=f"{suite.name}.png")
    atomic_write(to / f"{suite.name}.md", "\n".join([page, *(f"- {note}" for note in [sizes, *notes]), ""]))
    save_figure(board_figure(board), to / f"{suite.name}.png")


def options_of() -> argparse.ArgumentParser:
    """The options."""
    made = parser(__doc__, default="runs/leaderboard")
    made.add_argument("--only", nargs="+", choices=list(SUITES), default=list(SUITES), help="which suites")
    made.add_argument("--threads", type=int, default=1, help="small models gain nothing by more")
    made.add_argument("--steps", type=int, default=STEPS, help="evaluations of each search")
    made.add_argument("--tune", type=int, help="also tune every method, by so many evaluations on select each")
    return made


def main() -> None:
    """Measure what is missing, and write the pages of the suites."""
    options = options_of().parse_args()
    torch.set_num_threads(options.threads)
    folder: Path = (options.work or ROOT / "runs" / "leaderboard").resolve() / ("small" if options.small else "full")
    steps = 4 if options.small else options.steps
    command = "python -m benchmarks.leaderboard" + (" --small" if options.small else f" --steps {steps}")
    command += f" --tune {options.tune}" if options.tune else ""
    for name in options.only:
        suite = SUITES[name](options.small)
        board = measure(suite, folder / name / f"steps-{steps}", steps=steps, tune=options.tune)
        to = folder if options.small else EXAMPLES
        write(suite, board, to, [f"Command: `{command} --only {name}`", machine(options.threads)])
        print((to / f"{name}.md").read_text(encoding="utf-8"), flush=True)


if __name__ == "__main__":
    main()
