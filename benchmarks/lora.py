"""Sixteen LoRA adapters on one base: a search's peak memory beside that of the base alone.

    make bench-lora

Random adapters of rank 16 on all linear layers of a random 1.2-billion-parameter Llama in bf16, one layer-wise
coefficient each. The base alone makes the same forward and backward passes over the same texts, with gradients of the
same weights, in a process of its own.
"""

from __future__ import annotations

import sys

import torch

from benchmarks.harness import environment, mebibytes, parser, require_space, show, workspace
from benchmarks.memory import run_measured
from benchmarks.random_models import write_adapter, write_family
from benchmarks.search_case import planned, searched, write_search

ADAPTERS = 16
TASKS = 4
TEXTS = 4
STEPS = 3


def main() -> None:
    """Measure both and print the table."""
    options = parser(__doc__)
    options.add_argument("--rank", type=int, default=16, help="of every adapter")
    chosen = options.parse_args()
    model = "llama-tiny" if chosen.small else "llama-1b"
    with workspace(chosen) as work:
        require_space(work, 10**8 if chosen.small else 5 * 10**9)
        base = write_family(work, model, experts=0, dtype=torch.bfloat16)
        experts = {}
        for index in range(ADAPTERS):
            folder = work / f"adapter-{index}"
            write_adapter(folder, base.base, model, rank=chosen.rank, seed=index)
            experts[f"e{index}"] = f"{base.base}+{folder}"
        adapters = sum(file.stat().st_size for file in work.glob("adapter-*/*.safetensors"))
        file = write_search(work, base.base, experts, texts=TEXTS, words=16, steps=STEPS, tasks=TASKS)
        alone_command = [sys.executable, "-m", "benchmarks.base_alone", "--rounds", str(STEPS), "--texts", str(TEXTS)]
        data = [str(work / f"e{index}.jsonl") for index in range(TASKS)]
        alone = run_measured([*alone_command, str(base.base), *data], variables=environment())
        predicted = planned(file)
        done = searched(file)
    show(
        f"A search over {ADAPTERS} adapters of rank {chosen.rank} on {base.parameters / 1e9:.2f} B parameters, bf16",
        ["", "peak anonymous memory", "to the base alone", "planned", "time"],
        [
            ["base alone, forward and backward", mebibytes(alone.peak), "1.00x", "-", f"{alone.seconds:.0f} s"],
            [
                "optmerge search",
                mebibytes(done.peak),
                f"{done.peak / alone.peak:.2f}x",
                mebibytes(predicted),
                f"{done.seconds:.0f} s",
            ],
        ],
        [
            f"The base's weights are {mebibytes(base.nbytes)}, the adapters' files together {mebibytes(adapters)}. "
            "Time includes start, teachers and baselines."
        ],
    )


if __name__ == "__main__":
    main()
