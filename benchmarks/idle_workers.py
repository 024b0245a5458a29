"""How much of their time workers are idle when evaluations take very different times: with and without generations.

    make bench-idle-workers
    make bench-idle-workers BENCH=--small

CMA-ES with 16 workers; what an evaluation takes is drawn from a log-normal distribution. The first table is on a
simulated clock to which the processor time of driver and loop is added; the second really sleeps. Select is
scored for every generation's best and takes as long as fit.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.harness import parser, show, workspace
from benchmarks.simulated_workers import Judge, SimulatedWorkers, SleepingWorkers, heavy_tail
from optmerge.config.drivers import CmaConfig
from optmerge.config.schema import BudgetConfig
from optmerge.drivers import Variables, make_driver
from optmerge.records import Trajectory
from optmerge.runner.executor import Executor
from optmerge.runner.journal import Journal
from optmerge.runner.loop import run_loop
from optmerge.runner.state import StateStore

WORKERS = 16
MODES = {"in generations": True, "without": False}


@dataclass(frozen=True)
class Case:
    """One search.

    Attributes:
        dimension: Variables.
        population: Candidates of a generation.
        median: Seconds of an evaluation.
        sigma: Of the logarithm of its seconds.
    """

    dimension: int
    population: int
    median: float
    sigma: float


CASES = (Case(24, 16, 10.0, 1.0), Case(384, 21, 10.0, 1.0), Case(384, 64, 10.0, 1.0), Case(384, 21, 10.0, 1.5))
ASLEEP = Case(384, 21, 0.5, 1.0)


def search(folder: Path, case: Case, executor: Executor, *, evaluations: int, deterministic: bool) -> float:
    """Search, and give the best value on select."""
    d = case.dimension
    driver = make_driver(
        CmaConfig(population=case.population),
        Variables(tuple(f"x{i}" for i in range(d)), np.full(d, -1.0), np.full(d, 2.0), np.full(d, 0.3)),
        seed=np.random.SeedSequence(0),
        fit_sizes={},
        budget=evaluations,
    )
    with closing(Trajectory.open(folder)) as trajectory:
        outcome = run_loop(
            driver,
            executor,
            Journal(trajectory),
            BudgetConfig(evaluations=evaluations),
            StateStore(folder / "state"),
            deterministic=deterministic,
        )
    assert outcome.progress.best is not None, outcome.reason
    return outcome.progress.best


def rows(
    work: Path,
    case: Case,
    make: Callable[..., SimulatedWorkers | SleepingWorkers],
    *,
    evaluations: int,
) -> list[list[str]]:
    """Both modes of a case."""
    found = []
    for mode, deterministic in MODES.items():
        judge = Judge(case.dimension)
        executor = make(judge, workers=WORKERS, seconds=heavy_tail(1, median=case.median, sigma=case.sigma))
        folder = work / f"{make.__name__}-{case.dimension}-{case.population}-{case.sigma}-{deterministic}"
        best = search(folder, case, executor, evaluations=evaluations, deterministic=deterministic)
        executor.close()
        start = judge.select(np.full(case.dimension, 0.3)).value
        spans = executor.spans
        idle = [f"{spans.idle(WORKERS, whole=whole):.1%}" for whole in (True, False)]
        settings = [str(case.dimension), str(case.population), f"{case.median:g} s", f"{case.sigma:g}"]
        found.append([mode, *settings, *idle, f"{spans.took():,.0f} s", f"{best / start:.4f}"])
    return found


HEAD = ["", "variables", "population", "median", "sigma", "idle", "before the end", "took", "best of start"]


def main(options: argparse.Namespace) -> None:
    """Print both tables."""
    count, asleep = (200, 48) if options.small else (4000, 640)
    cases = CASES[:2] if options.small else CASES
    with workspace(options) as work:
        simulated = [row for case in cases for row in rows(work, case, SimulatedWorkers, evaluations=count)]
        note = (
            f"{count:,} evaluations, {WORKERS} workers; sigma: of the logarithm of the seconds of an evaluation; "
            "before the end: until the last moment at which all were busy, after which less is left than there are "
            "workers."
        )
        best = "best of start: the best value on select as a share of the start's, after as many evaluations."
        show("Idle workers, on a simulated clock", HEAD, simulated, [note, best])
        note = f"{asleep:,} evaluations, {WORKERS} threads that sleep."
        show("Idle workers, asleep", HEAD, rows(work, ASLEEP, SleepingWorkers, evaluations=asleep), [note])


if __name__ == "__main__":
    main(parser(__doc__).parse_args())
