"""Writing a merge: `optmerge merge` beside `mergekit-yaml`, whole processes.

    make bench-merge

A random 240M-parameter Llama and 3 experts in bf16, merged in fp32 and written in bf16, by task arithmetic and by
TIES. The sides take turns; the median of the runs counts. Every file is in the page cache before the first run. Our
first run of each method, with an empty cache (the kernels are compiled, values are checked for NaN), is shown apart.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open

from benchmarks.harness import environment, mebibytes, ours, parser, peer, show, workspace
from benchmarks.memory import Measured, run_measured
from benchmarks.random_models import RandomFamily, write_family

WEIGHTS = (0.3, 0.4, -0.2)
DENSITY = 0.5


@dataclass(frozen=True, slots=True)
class Difference:
    """How two checkpoints differ.

    Attributes:
        tensors: How many they have.
        unequal: How many of these are not bit-identical.
        values: How many numbers differ.
        total: How many numbers there are.
        largest: Largest absolute difference.
        unexplained: How many of the numbers that differ are none whose trimming is arbitrary (see `at_threshold`).
    """

    tensors: int
    unequal: int
    values: int
    total: int
    largest: float
    unexplained: int

    def __str__(self) -> str:
        if not self.unequal:
            return f"none: {self.tensors} of {self.tensors} tensors bit-identical"
        return (
            f"{100 * self.values / self.total:.2f} % of values, at most {self.largest:.1e}; "
            f"{self.unexplained:,} of these {self.values:,} not at a threshold"
        )


def recipes(family: RandomFamily) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Method -> our recipe and mergekit's config, which mean the same."""
    experts = {name: str(folder) for name, folder in family.experts.items()}
    mine = {"optmerge_recipe": 1, "base": str(family.base), "experts": experts, "dtype": "bfloat16"}
    theirs = {
        "base_model": str(family.base),
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }
    ties = {"name": "ties", "density": DENSITY, "compat": "mergekit"}
    return {
        "task_arithmetic": (
            {**mine, "coefficients": dict(zip(experts, WEIGHTS, strict=True))},
            {
                **theirs,
                "merge_method": "task_arithmetic",
                "parameters": {"normalize": False},
                "models": [
                    {"model": folder, "parameters": {"weight": weight}}
                    for folder, weight in zip(experts.values(), WEIGHTS, strict=True)
                ],
            },
        ),
        "ties": (
            {**mine, "directions": [{"name": "ties", "method": ties}], "coefficients": {"ties": 1.0}},
            {
                **theirs,
                "merge_method": "ties",
                "models": [
                    {"model": folder, "parameters": {"weight": 1.0, "density": DENSITY}} for folder in experts.values()
                ],
            },
        ),
    }


def compare(ours_at: Path, theirs_at: Path, family: RandomFamily) -> Difference:
    """Every tensor of two checkpoints, one at a time."""
    mine, theirs = _places(ours_at), _places(theirs_at)
    if mine.keys() != theirs.keys():
        raise SystemExit(f"The checkpoints have other tensors: {sorted(mine.keys() ^ theirs.keys())[:5]}")
    sources = [_places(folder) for folder in (family.base, *family.experts.values())]
    unequal, values, total, unexplained, largest = 0, 0, 0, 0, 0.0
    for name in mine:
        a, b = _tensor(mine[name], name), _tensor(theirs[name], name)
        if a.dtype != b.dtype or a.shape != b.shape:
            raise SystemExit(f"{name} is {a.dtype} {tuple(a.shape)} in one and {b.dtype} {tuple(b.shape)} in the other")
        total += a.numel()
        differs = a.view(torch.int16) != b.view(torch.int16)
        if differs.any():
            base, *experts = (_tensor(places[name], name) for places in sources)
            unequal += 1
            values += int(differs.sum())
            unexplained += int((differs & ~at_threshold(base, experts)).sum())
            largest = max(largest, float((a.float() - b.float()).abs().max()))
    return Difference(len(mine), unequal, values, total, largest, unexplained)


def at_threshold(base: torch.Tensor, experts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Where some expert's delta is exactly as large as the smallest that TIES keeps.

    Deltas of bf16 weights have many equal magnitudes, and which of those at the threshold are kept is not defined.
    """
    found = torch.zeros(base.shape, dtype=torch.bool)
    for expert in experts:
        size = (expert.float() - base.float()).abs()
        kept = int(DENSITY * size.numel())
        if kept:
            found |= size == size.flatten().kthvalue(size.numel() - kept + 1).values
    return found


@dataclass(frozen=True, slots=True)
class Turns:
    """What several sides took, in turns.

    Attributes:
        seconds: Side -> median over the runs.
        processor: Side -> median of the seconds of processors.
        peak: Side -> largest over the runs, in bytes.
        first: Our first run, with an empty cache.
    """

    seconds: Mapping[str, float]
    processor: Mapping[str, float]
    peak: Mapping[str, int]
    first: Measured

    def cells(self) -> list[str]:
        """Of a table: seconds and their ratio, peaks and theirs; "-" where mergekit has no such method."""
        cells = [f"{self.seconds['ours']:.1f} s", "-", "-", mebibytes(self.peak["ours"]), "-", "-"]
        if "mergekit" in self.seconds:
            cells[1:3] = [
                f"{self.seconds['mergekit']:.1f} s",
                f"{self.seconds['mergekit'] / self.seconds['ours']:.1f}x",
            ]
            cells[4:] = [mebibytes(self.peak["mergekit"]), f"{self.peak['mergekit'] / self.peak['ours']:.1f}x"]
        return cells

    def processor_cells(self) -> list[str]:
        """The same of the processors' seconds: ours, mergekit's and how many times less ours are."""
        ours = self.processor["ours"]
        if "mergekit" not in self.processor:
            return [f"{ours:.1f} s", "-", "-"]
        theirs = self.processor["mergekit"]
        return [f"{ours:.1f} s", f"{theirs:.1f} s", f"{theirs / ours:.1f}x"]


def take_turns(
    method: str, mine: Mapping[str, Any], theirs: Mapping[str, Any] | None, work: Path, rounds: int
) -> tuple[Turns, dict[str, Path]]:
    """Write a merge by each side, one after the other, in a process of its own each time.

    Args:
        method: What the files are called after.
        mine: Our recipe.
        theirs: mergekit's config; None where it has no such method.
        work: Folder for files.
        rounds: Timed runs of each side.

    Returns:
        What they took, and side -> the checkpoint that it has written.
    """
    contents = {"ours": dict(mine)} | ({"mergekit": dict(theirs)} if theirs is not None else {})
    files = {name: work / f"{method}-{name}.yaml" for name in contents}
    for name, content in contents.items():
        files[name].write_text(yaml.safe_dump(content, sort_keys=False))
    out = {name: work / f"{method}-{name}" for name in files}

    def run(name: str) -> Measured:
        shutil.rmtree(out[name], ignore_errors=True)
        if name == "ours":
            command = [ours("optmerge"), "merge", str(files[name]), "--to", str(out[name])]
        else:
            command = [peer("mergekit", "mergekit-yaml"), str(files[name]), str(out[name]), "--quiet"]
        return run_measured(command, variables=environment(), folder=work)

    shutil.rmtree(work / "cache", ignore_errors=True)
    first = {name: run(name) for name in contents}  # its modules are compiled and in the page cache then, as ours are
    runs: dict[str, list[Measured]] = {name: [] for name in contents}
    for _ in range(rounds):
        for name, found in runs.items():
            found.append(run(name))
    return Turns(
        {name: statistics.median(one.seconds for one in found) for name, found in runs.items()},
        {name: statistics.median(one.processor for one in found) for name, found in runs.items()},
        {name: max(one.peak for one in found) for name, found in runs.items()},
        first["ours"],
    ), out


def measure(
    method: str, mine: Mapping[str, Any], theirs: Mapping[str, Any], family: RandomFamily, work: Path, rounds: int
) -> list[str]:
    """One row of the table."""
    turns, out = take_turns(method, mine, theirs, work, rounds)
    return [
        method,
        *turns.cells(),
        f"{turns.first.seconds:.1f} s",
        str(compare(out["ours"], out["mergekit"], family)),
    ]


def main() -> None:
    """Measure both methods and print the table."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=3, help="timed runs of each side")
    chosen = options.parse_args()
    with workspace(chosen) as work:
        model = "llama-tiny" if chosen.small else "llama-240m"
        family = write_family(work, model, experts=len(WEIGHTS), dtype=torch.bfloat16)
        rounds = 1 if chosen.small else chosen.rounds
        rows = [measure(method, *pair, family, work, rounds) for method, pair in recipes(family).items()]
    show(
        f"Writing a merge: {family.parameters / 1e6:.0f} M parameters, {len(WEIGHTS)} experts, bf16",
        ["", "ours", "mergekit", "faster", "our peak", "its peak", "smaller", "our first run", "differences"],
        rows,
        [
            "Whole processes. peak: largest sum of anonymous memory of a process and its children over all runs.",
            "threshold: deltas of bf16 weights have many equal magnitudes, and which of those exactly as large as the "
            "smallest that TIES keeps are kept is not defined.",
        ],
    )


def _places(folder: Path) -> dict[str, Path]:
    places: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            places |= dict.fromkeys(opened.keys(), file)
    return places


def _tensor(file: Path, name: str) -> torch.Tensor:
    with safe_open(file, "pt") as opened:
        tensor: torch.Tensor = opened.get_tensor(name)
    return tensor


if __name__ == "__main__":
    main()
