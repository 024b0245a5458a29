"""What driver, loop and trajectory themselves take of an evaluation, with a thousand workers and a thousand variables.

    make bench-loop-cost
    make bench-loop-cost BENCH='--work /dev/shm/bench'

Diagonal CMA-ES; evaluations cost nothing, so all that is measured is overhead. Waiting for the disk (every record is
flushed to it) is a column of its own, as it depends on the disk alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.harness import parser, show, workspace
from benchmarks.idle_workers import Case, search
from benchmarks.simulated_workers import Judge, SimulatedWorkers, heavy_tail
from optmerge.drivers.cma_driver import CmaDriver
from optmerge.records import Trajectory

WORKERS = DIMENSION = 1000
CASES = ((24, False), (1000, False), (1000, True))  # population, deterministic


class Stopwatch:
    """Seconds spent in some functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def around(self, owner: object, *names: str) -> Iterator[None]:
        """Measure calls of the named functions of a class or module."""
        kept = {name: getattr(owner, name) for name in names}

        def timed(name: str):  # type: ignore[no-untyped-def]
            def call(*arguments, **options):  # type: ignore[no-untyped-def]
                begun = time.perf_counter()
                try:
                    return kept[name](*arguments, **options)
                finally:
                    self.seconds += time.perf_counter() - begun

            return call

        for name in names:
            setattr(owner, name, timed(name))
        try:
            yield
        finally:
            for name in names:
                setattr(owner, name, kept[name])


def row(work: Path, population: int, *, deterministic: bool, evaluations: int) -> list[str]:
    """Milliseconds per fit evaluation, of one search."""
    executor = SimulatedWorkers(Judge(DIMENSION), workers=WORKERS, seconds=heavy_tail(1, median=60.0, sigma=1.0))
    driver, disk = Stopwatch(), Stopwatch()
    folder = work / f"{population}-{deterministic}"
    begun, processor = time.perf_counter(), time.process_time()
    with driver.around(CmaDriver, "ask", "tell", "draw", "absorb"), disk.around(Trajectory, "_sync"):
        search(
            folder,
            Case(DIMENSION, population, 60.0, 1.0),
            executor,
            evaluations=evaluations,
            deterministic=deterministic,
        )
    whole, used = time.perf_counter() - begun, time.process_time() - processor
    parts = [whole - disk.seconds, used, driver.seconds, disk.seconds]
    mode = "in generations" if deterministic else "without"
    return [mode, str(population), *(f"{1000 * part / evaluations:.2f} ms" for part in parts)]


def main(options: argparse.Namespace) -> None:
    """Print the table."""
    evaluations = 2000 if options.small else 5000
    with workspace(options) as work:
        found = [row(work, size, deterministic=mode, evaluations=evaluations) for size, mode in CASES]
    head = ["", "population", "an evaluation", "processor", "of it the driver", "the disk besides"]
    note = (
        f"{evaluations:,} evaluations over {DIMENSION} variables, {WORKERS} workers; a generation's best is one more, "
        "on select. An evaluation: wall-clock time but for the disk's; processor: the same in processor time."
    )
    show("The loop's own cost", head, found, [note])


if __name__ == "__main__":
    main(parser(__doc__).parse_args())
