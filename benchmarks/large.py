"""Models larger than memory allows at once: a merge of four 3B checkpoints, and a search over four 1B experts.

    make bench-large

The merge: a base and three experts of 3.2 billion parameters in bf16 (26 GB on disk, 6 GB written), by task
arithmetic. The search: layer-wise, by gradient, three steps over a 1.2-billion-parameter base and four experts, its
peak beside what `optmerge plan` predicts. Nothing is compared with a peer here: this shows what fits.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
import yaml

from benchmarks.harness import environment, mebibytes, ours, parser, require_space, show, workspace
from benchmarks.memory import run_measured
from benchmarks.random_models import write_family
from benchmarks.search_case import planned, searched, write_search

STEPS = 3


def merge(work: Path, model: str, needed: int) -> None:
    """Merge four checkpoints and print the table."""
    require_space(work, needed)
    family = write_family(work, model, experts=3, dtype=torch.bfloat16)
    recipe = work / "recipe.yaml"
    body = {
        "optmerge_recipe": 1,
        "base": str(family.base),
        "experts": {name: str(folder) for name, folder in family.experts.items()},
        "dtype": "bfloat16",
        "coefficients": {name: 0.3 + 0.1 * index for index, name in enumerate(family.experts)},
    }
    recipe.write_text(yaml.safe_dump(body, sort_keys=False))
    target = work / "merged"
    shutil.rmtree(target, ignore_errors=True)
    done = run_measured([ours("optmerge"), "merge", str(recipe), "--to", str(target)], variables=environment())
    written = sum(file.stat().st_size for file in target.glob("*.safetensors"))
    total = family.nbytes * (1 + len(family.experts))
    show(
        f"Merging {1 + len(family.experts)} checkpoints of {family.parameters / 1e9:.2f} B parameters, bf16",
        ["", "read", "written", "time", "speed", "peak anonymous memory"],
        [
            [
                "optmerge merge",
                f"{total / 1e9:.1f} GB",
                f"{written / 1e9:.1f} GB",
                f"{done.seconds:.0f} s",
                f"{(total + written) / done.seconds / 1e9:.2f} GB/s",
                mebibytes(done.peak),
            ]
        ],
    )
    shutil.rmtree(target)


def search(work: Path, model: str, needed: int) -> None:
    """Search over four experts and print the table."""
    require_space(work, needed)
    family = write_family(work, model, experts=4, dtype=torch.bfloat16)
    experts = {name: str(folder) for name, folder in family.experts.items()}
    file = write_search(work, family.base, experts, texts=4, words=16, steps=STEPS, tasks=len(experts))
    predicted = planned(file)
    done = searched(file)
    show(
        f"A layer-wise gradient search over {len(experts)} experts of {family.parameters / 1e9:.2f} B parameters, bf16",
        ["", "one model", "all models", "planned peak", "measured peak", "off by", f"time of all {STEPS} steps"],
        [
            [
                "optmerge search",
                mebibytes(family.nbytes),
                mebibytes(family.nbytes * (1 + len(experts))),
                mebibytes(predicted),
                mebibytes(done.peak),
                f"{100 * (done.peak / predicted - 1):+.0f} %",
                f"{done.seconds:.0f} s",
            ]
        ],
        ["Peaks are anonymous memory of the whole process; time includes its start, teachers and baselines."],
    )


def main() -> None:
    """Run the chosen parts."""
    options = parser(__doc__)
    options.add_argument("--part", choices=("merge", "search"), help="only one of the two")
    chosen = options.parse_args()
    models = {"merge": ("llama-3b", 34 * 10**9), "search": ("llama-1b", 14 * 10**9)}
    if chosen.small:
        models = dict.fromkeys(models, ("llama-tiny", 10**8))
    with workspace(chosen) as work:
        for part, run in (("merge", merge), ("search", search)):
            if chosen.part not in (None, part):
                continue
            folder = work / part
            folder.mkdir(exist_ok=True)
            run(folder, *models[part])
            if chosen.work is None:
                shutil.rmtree(folder)  # the next part needs the room


if __name__ == "__main__":
    main()
