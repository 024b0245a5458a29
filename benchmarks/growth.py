"""Peak anonymous memory of a gradient step as experts are added, ours and FusionBench's.

    make bench-memory

The case of `benchmarks.gradient`, one worker at a time: from its start, opening the models included, to the end of
three steps. Every task is back-propagated on its own, so a further expert brings no further activations.
"""

from __future__ import annotations

from benchmarks.gradient import STEPS, case, commands, options_of
from benchmarks.harness import mebibytes, show, workspace
from benchmarks.memory import PeakSampler
from benchmarks.worker import Worker

SIDES = {"ours": "ours", "hooks": "ours, hook form", "fusionbench": "FusionBench"}


def peak(command: list[str]) -> int:
    """Peak anonymous memory of a worker that makes a few steps, in bytes."""
    with Worker(command) as worker, PeakSampler(worker.pid) as sampler:
        for _ in range(STEPS):
            worker.ask("step")
    return sampler.peak


def main() -> None:
    """Measure every side at every K and print the table."""
    chosen = options_of(__doc__).parse_args()
    counts = chosen.experts
    with workspace(chosen) as work:
        family, batch = case(chosen, work)
        peaks = {side: [peak(commands(family, count, batch)[side]) for count in counts] for side in SIDES}
    rows = [
        [
            title,
            *(mebibytes(value) for value in peaks[side]),
            f"{100 * (peaks[side][-1] / peaks[side][0] - 1):+.1f} %",
            mebibytes((peaks[side][-1] - peaks[side][0]) / (counts[-1] - counts[0])),
        ]
        for side, title in SIDES.items()
    ]
    show(
        f"Peak anonymous memory of a gradient step: {family.parameters / 1e6:.0f} M parameters, batch {batch}, fp32",
        ["", *(f"K = {count}" for count in counts), f"K = {counts[0]} to {counts[-1]}", "per expert"],
        rows,
        [f"One model's weights are {mebibytes(family.nbytes)}."],
    )


if __name__ == "__main__":
    main()
