"""Writing the merge of a method: `optmerge merge`, beside `mergekit-yaml` where it has the method; whole processes.

    make bench-static-methods

A random 240M-parameter Llama and 3 experts in bf16, merged in fp32 and written in bf16. The sides take turns; the
median of the runs counts. Every file is in the page cache before the first run, and our cache of what is known of the
files is warm. Where mergekit has the method, both follow its rules (`compat: mergekit`), so that they do the same work.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.harness import parser, show, workspace
from benchmarks.merge import take_turns
from benchmarks.random_models import RandomFamily, write_family
from optmerge.config.methods import METHOD_CONFIGS

EXPERTS = 3
DENSITY = 0.5

OURS: dict[str, dict[str, Any]] = {
    "ties": {"density": DENSITY, "compat": "mergekit"},
    "dare": {"drop": 1 - DENSITY, "compat": "mergekit"},
    "della": {"drop": 1 - DENSITY, "epsilon": 0.1, "compat": "mergekit"},
    "breadcrumbs": {"density": DENSITY, "outliers": 0.01, "compat": "mergekit"},
    "star": {},
    "iso-c": {},
    "tsv-m": {},
}
"""Method -> its settings in our recipes."""

THEIRS: dict[str, tuple[str, dict[str, float]]] = {
    "ties": ("ties", {"weight": 1.0, "density": DENSITY}),
    "dare": ("dare_linear", {"weight": 1.0, "density": DENSITY}),
    "della": ("della", {"weight": 1.0, "density": DENSITY, "epsilon": 0.1}),
    "breadcrumbs": ("breadcrumbs", {"weight": 1.0, "density": DENSITY, "gamma": 0.01}),
}
"""Those that mergekit has -> what it calls them, and the parameters of each model."""


def our_recipe(method: str, family: RandomFamily) -> dict[str, Any]:
    """The whole method at scale 1."""
    return {
        "optmerge_recipe": 1,
        "base": str(family.base),
        "experts": {name: str(folder) for name, folder in family.experts.items()},
        "dtype": "bfloat16",
        "directions": [{"name": method, "method": {"name": method, **OURS[method]}}],
        "coefficients": {method: 1.0},
    }


def their_config(method: str, family: RandomFamily) -> dict[str, Any] | None:
    """The same merge for mergekit; None where it has no such method."""
    if method not in THEIRS:
        return None
    name, parameters = THEIRS[method]
    return {
        "base_model": str(family.base),
        "dtype": "float32",
        "out_dtype": "bfloat16",
        "merge_method": name,
        "parameters": {"normalize": method == "ties"},
        "models": [{"model": str(folder), "parameters": parameters} for folder in family.experts.values()],
    }


def registered(settings: Mapping[str, Any]) -> list[str]:
    """The methods of ``settings`` that there are; what is left out is told."""
    for method in settings:
        if method not in METHOD_CONFIGS:
            print(f"{method} is left out: this optmerge has no such method.", file=sys.stderr)
    return [method for method in settings if method in METHOD_CONFIGS]


def main() -> None:
    """Measure every method and print the table."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=3, help="timed runs of each side")
    options.add_argument("--methods", help=f"some of them, with commas between; default: {','.join(OURS)}")
    chosen = options.parse_args()
    wanted = chosen.methods.split(",") if chosen.methods else list(OURS)
    unknown = [method for method in wanted if method not in OURS]
    if unknown:
        raise SystemExit(f"--methods has {', '.join(unknown)}; expected some of {', '.join(OURS)}")
    rows = []
    with workspace(chosen) as work:
        model = "llama-tiny" if chosen.small else "llama-240m"
        family = write_family(work, model, experts=EXPERTS, dtype=torch.bfloat16)
        for method in registered({method: OURS[method] for method in wanted}):
            rounds = 1 if chosen.small else chosen.rounds
            turns, _ = take_turns(method, our_recipe(method, family), their_config(method, family), work, rounds)
            rows.append([method, *turns.cells(), *turns.processor_cells()])
            print(f"{method}: {turns.seconds['ours']:.1f} s", file=sys.stderr)
    show(
        f"Writing methods: {family.parameters / 1e6:.0f} M parameters, {EXPERTS} experts, bf16",
        ["", "ours", "mergekit", "faster", "our peak", "its peak", "smaller", "our CPU", "its CPU", "less"],
        rows,
        [
            "Whole processes. peak: largest sum of anonymous memory of a process and its children over all runs.",
            "CPU: seconds of processors, which what else runs on the machine changes less than the clock.",
        ],
    )


if __name__ == "__main__":
    main()
