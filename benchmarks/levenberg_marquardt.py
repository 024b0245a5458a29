"""Whether a few Gauss-Newton steps do what Adam does in 500, on small ViTs that read digits (or on the demo's experts).

    make bench-levenberg-marquardt

The objective is `expert-kl`, from task arithmetic at 0.3, in three spaces of few variables, each on three sets of fit
images. Adam has 500 steps at its default rate; `levenberg-marquardt` has 20. A table has every run: the fit objective
of both, after how many steps Levenberg-Marquardt was as low as Adam at its end (to 0.01 %), or within 5 % of it, and
the forward passes that each took (a gradient counts as three, as a backward pass costs two). Runs are kept in --work,
so a second start finds what is finished. The experts are trained once, in a minute or two.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.demo_searches import run
from benchmarks.harness import machine, parser
from benchmarks.quality_suites import SUITES, Suite
from optmerge.atomic import atomic_write
from optmerge.models.cache import cache_dir
from optmerge.records import Record, Trajectory
from optmerge.tracking.markdown import NONE, table

SPACES = ("task-wise", "layer-wise", "layer-kind-wise")
STEPS = 20  # of Levenberg-Marquardt
START = 0.3
ROUNDING = 1.0001  # Adam's lowest of 500 values is also the luckiest of them in fp32
CLOSE = 1.05


def subset(suite: Suite, folder: Path, seed: int) -> Suite:
    """The suite with a random half of every task's rows, so that seeds are judged on different examples."""
    made = {}
    for task, file in suite.data.items():
        lines = file.read_text("utf-8").splitlines()
        kept = np.random.default_rng(seed).permutation(len(lines))[: len(lines) // 2]
        made[task] = folder / f"{task}-{seed}.jsonl"
        made[task].parent.mkdir(parents=True, exist_ok=True)
        atomic_write(made[task], "\n".join(lines[place] for place in sorted(kept)) + "\n")
    return replace(suite, data=made)


def fit_records(wanted: dict[str, Any]) -> list[Record]:
    """The fit evaluations of a search: made, continued, or found finished."""
    run(wanted, terminal=False)
    return [record for record in Trajectory.read(Path(wanted["output"])).records if record.phase == "search"]


def lowest(records: list[Record]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The lowest value so far, after each step; the first is the start's."""
    return np.minimum.accumulate([np.inf if record.value is None else record.value for record in records])


def first_below(values: np.ndarray[Any, np.dtype[np.float64]], goal: float) -> str:
    """After how many steps a value is at or below ``goal``."""
    found = np.flatnonzero(values <= goal)
    return str(int(found[0])) if len(found) else NONE


def measure(suite: Suite, folder: Path, space: str, seed: int, adam_steps: int) -> list[str]:
    """A row of the table."""
    common: dict[str, Any] = {
        "space": {"granularity": space, "start": START},
        "objective": "expert-kl",
        "baselines": {"grid": [START]},
        "alarms": {"collapse": "warn"},  # both go on to the end, so that they can be compared
        "seed": seed,
    }
    name = f"{space}-{seed}"
    adam = fit_records(
        suite.search(
            folder / f"{name}-adam",
            driver="adam",
            budget={"evaluations": adam_steps + 1, "select_every": 100},
            **common,
        )
    )
    assert adam[0].vector is not None
    d = len(adam[0].vector)
    ours = fit_records(
        suite.search(
            folder / f"{name}-lm",
            driver="levenberg-marquardt",
            budget={"evaluations": (STEPS + 1) * (d + 1)},
            **common,
        )
    )
    goals, values = lowest(adam), lowest(ours)
    goal = float(goals[-1])
    steps = values[[min(step, len(values) - 1) for step in (5, 10, 20)]]
    reached = first_below(values, ROUNDING * goal)
    passes = NONE if reached == NONE else f"{(int(reached) + 1) * (d + 4)}"
    shown = [f"{value:.4f}" for value in (values[0], goal, *steps)]
    return [space, str(d), str(seed), *shown, reached, first_below(values, CLOSE * goal), passes, f"{3 * len(adam)}"]


def main() -> None:
    """Run every search and print the table."""
    made = parser(__doc__, default="the cache")
    made.add_argument("--suite", choices=["digits", "demo"], default="digits", help="whose experts")
    options: argparse.Namespace = made.parse_args()
    suite = SUITES[options.suite](options.small)
    suite = replace(suite, fit=min(suite.fit, 32), select=min(suite.select, 16), report=min(suite.report, 32))
    folder = (options.work or cache_dir() / "levenberg-marquardt") / (suite.name + "-small" * options.small)
    seeds, spaces, adam_steps = ((0,), SPACES[:1], 20) if options.small else ((0, 1, 2), SPACES, 500)
    rows = []
    head = ["space", "d", "seed", "start", f"Adam, {adam_steps} steps", "LM, 5", "LM, 10", "LM, 20"]
    head += ["steps to Adam's", "within 5 %", "passes", "Adam's passes"]
    for seed in seeds:
        part = subset(suite, folder / "data", seed)
        for space in spaces:
            rows.append(measure(part, folder, space, seed, adam_steps))
            print(" ".join(rows[-1]), flush=True)
    text = f"### Levenberg-Marquardt beside Adam: {suite.title}\n\n{table(head, rows, left=(0,))}\n\n- {machine()}\n"
    atomic_write(folder / "RESULT.md", text)
    print("\n" + text)


if __name__ == "__main__":
    main()
