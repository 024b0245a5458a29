"""What writing a candidate costs, beside copying the same number of bytes.

    make bench-apply

A random Llama of more than 300 MB and K experts, all of them mapped files that are in the page cache. An apply reads
K + 1 models and writes one; the copy beside it is `torch.Tensor.copy_` in memory, of as many bytes read plus written.
Both run in the same process with the same threads and take turns.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.harness import mebibytes, parser, show, workspace
from benchmarks.random_models import RandomFamily, write_family
from benchmarks.worker import Worker

KERNELS = ("compiled", "torch")


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of every round."""

    apply: list[float]
    copy: list[float]

    @property
    def best(self) -> float:
        """Ratio of the shortest times: what the machine can do when nothing disturbs it."""
        return min(self.apply) / min(self.copy)

    @property
    def median(self) -> float:
        """Ratio of the median times."""
        return statistics.median(self.apply) / statistics.median(self.copy)


def measure(family: RandomFamily, experts: int, kernels: str, rounds: int) -> tuple[Times, int]:
    """Times of both sides, and the bytes that each moves."""
    models = [str(family.base), *(str(folder) for folder in list(family.experts.values())[:experts])]
    command = [sys.executable, "-m", "benchmarks.apply_worker", *models]
    with Worker(command, variables={"OPTMERGE_KERNELS": kernels}) as worker:
        for _ in range(2):
            worker.ask("apply")
            moved, _ = worker.ask("copy")
        times = Times([], [])
        for _ in range(rounds):
            rewritten, seconds = worker.ask("apply")
            assert rewritten, "every apply must rewrite the model"
            times.apply.append(seconds)
            times.copy.append(worker.ask("copy")[1])
    return times, int(moved)


def rows_of(work: Path, model: str, dtype: torch.dtype, counts: Sequence[int], rounds: int) -> list[list[str]]:
    """The table's rows of one dtype."""
    family = write_family(work, model, experts=max(counts), dtype=dtype)
    rows = []
    for count in counts:
        found = {kernels: measure(family, count, kernels, rounds) for kernels in KERNELS}
        times, moved = found["compiled"]
        slow, _ = found["torch"]
        rows.append(
            [
                str(dtype).removeprefix("torch."),
                str(count),
                mebibytes(family.nbytes),
                f"{1e3 * statistics.median(times.apply):.0f} ms",
                f"{1e3 * statistics.median(times.copy):.0f} ms",
                f"{moved / statistics.median(times.apply) / 1e9:.1f} GB/s",
                f"{moved / statistics.median(times.copy) / 1e9:.1f} GB/s",
                f"{times.best:.2f}x",
                f"{times.median:.2f}x",
                f"{slow.best:.2f}x",
                f"{slow.median:.2f}x",
            ]
        )
    return rows


def main() -> None:
    """Measure both dtypes at every K and print the table."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=11, help="timed rounds of each side")
    options.add_argument("--experts", type=int, nargs="+", default=[2, 4, 8], metavar="K", help="numbers of experts")
    chosen = options.parse_args()
    counts = chosen.experts
    cases = [("llama-110m", torch.float32), ("llama-240m", torch.bfloat16)]
    if chosen.small:
        cases = [("llama-tiny", dtype) for _, dtype in cases]
    with workspace(chosen) as work:
        rows = [row for case in cases for row in rows_of(work, *case, counts, 3 if chosen.small else chosen.rounds)]
    show(
        "Writing a candidate, against copying the same number of bytes",
        ["", "K", "model", "apply", "copy", "apply moves", "copy moves", "best", "median", "torch: best", "median"],
        rows,
        [
            "apply, copy, moves: medians, compiled kernels. best, median: time of apply over time of copy, shortest "
            "and the median of the rounds; torch: the same without the compiled kernels.",
        ],
    )


if __name__ == "__main__":
    main()
