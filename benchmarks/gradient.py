"""What a gradient step costs: beside plain forward and backward passes, and beside FusionBench's.

    make bench-gradient

A random CLIP-ViT-B/32 vision tower and K experts, one coefficient a tensor and expert, 16 images a task. All sides run
in processes of their own with the same weights, inputs, loss (entropy of a fixed zero-shot head) and Adam, and take
turns, so that whatever else the machine does falls on all of them. First three steps whose losses and coefficients are
compared, then timed rounds of which the median counts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import parser, peer, show, workspace
from benchmarks.random_models import RandomFamily, write_family
from benchmarks.worker import Worker

STEPS = 3  # of which losses and coefficients are compared


def commands(family: RandomFamily, experts: int, batch: int) -> dict[str, list[str]]:
    """Side -> the command of its worker."""
    models = [str(family.base), *(str(folder) for folder in list(family.experts.values())[:experts])]
    ours = [sys.executable, "-m", "benchmarks.gradient_worker", "--batch", str(batch)]
    return {
        "ours": [*ours, *models],
        "hooks": [*ours, "--form", "hooks", *models],
        "fusionbench": [peer("fusionbench"), "-m", "benchmarks.fusionbench_worker", "--batch", str(batch), *models],
    }


def measure(family: RandomFamily, experts: int, batch: int, rounds: int) -> list[str]:
    """One row of the table."""
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker(command)) for name, command in commands(family, experts, batch).items()
        }
        losses = {name: [workers[name].ask("step")[0] for _ in range(STEPS)] for name in workers}
        found = {name: workers[name].ask("coefficients")[0] for name in workers}
        workers["ours"].ask("plain")
        seconds: dict[str, list[float]] = {name: [] for name in ("plain", *workers)}
        for _ in range(rounds):
            seconds["plain"].append(workers["ours"].ask("plain")[1])
            for name, worker in workers.items():
                seconds[name].append(worker.ask("step")[1])
    typical = {name: statistics.median(values) for name, values in seconds.items()}
    apart = max(abs(a - b) for a, b in zip(losses["ours"], losses["fusionbench"], strict=True))
    return [
        str(experts),
        f"{typical['plain']:.2f}",
        f"{typical['ours']:.2f}",
        f"{100 * (typical['ours'] / typical['plain'] - 1):+.1f} %",
        f"{typical['hooks']:.2f}",
        f"{100 * (typical['hooks'] / typical['plain'] - 1):+.1f} %",
        f"{typical['fusionbench']:.2f}",
        f"{typical['fusionbench'] / typical['ours']:.2f}x",
        f"{apart:.1e}",
        f"{_apart(found['ours'], found['fusionbench']):.1e}",
    ]


def _apart(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((torch.tensor(ours[name]) - torch.tensor(theirs[name])).abs().max()) for name in ours)


def case(options: argparse.Namespace, work: Path) -> tuple[RandomFamily, int]:
    """Models, and images a task."""
    model, batch = ("clip-tiny", 2) if options.small else ("clip-b32", 16)
    return write_family(work, model, experts=max(options.experts), dtype=torch.float32), batch


def options_of(text: str | None) -> argparse.ArgumentParser:
    """The options of this benchmark and of `growth`."""
    options = parser(text)
    options.add_argument("--experts", type=int, nargs="+", default=[2, 4, 8], metavar="K", help="numbers of experts")
    return options


def main() -> None:
    """Measure every K and print the table."""
    options = options_of(__doc__)
    options.add_argument("--rounds", type=int, default=5, help="timed rounds, of which the median counts")
    chosen = options.parse_args()
    with workspace(chosen) as work:
        family, batch = case(chosen, work)
        rows = [measure(family, count, batch, 3 if chosen.small else chosen.rounds) for count in chosen.experts]
    show(
        f"A gradient step: {family.parameters / 1e6:.0f} M parameters, batch {batch} a task, fp32",
        [
            "K",
            "plain s",
            "ours s",
            "on top",
            "hooks s",
            "on top",
            "FusionBench s",
            "FusionBench / ours",
            "loss apart",
            "coefficients apart",
        ],
        rows,
        [
            "plain: forward and backward of all tasks with weight gradients, no merge. ours: merge, the same, "
            "contraction, Adam (gradients accumulated, contracted once). hooks: the same with each gradient contracted "
            "and dropped as soon as it is whole.",
            f"apart: largest absolute difference to FusionBench over the first {STEPS} steps (loss: sum over tasks).",
        ],
    )


if __name__ == "__main__":
    main()
