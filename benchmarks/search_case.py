"""A layer-wise gradient search over a random Llama, small in everything but the model; for `large` and `lora`.

file = write_search(work, base, experts, texts=4, words=16, steps=3)
plan = planned(file)
measured = searched(file)
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.harness import environment, ours
from benchmarks.memory import Measured, run_measured
from benchmarks.random_models import write_texts


def write_search(
    work: Path, base: Path, experts: Mapping[str, str], *, texts: int, words: int, steps: int, tasks: int
) -> Path:
    """Write calibration texts and a search file; returns the file.

    Args:
        work: Where they go.
        base: The base's folder.
        experts: Name -> model reference.
        texts: Fit examples a task.
        words: Tokens of every text.
        steps: Gradient steps.
        tasks: How many tasks there are, one for each of the first experts.
    """
    names = list(experts)[:tasks]
    for number, name in enumerate(names):
        write_texts(work / f"{name}.jsonl", count=texts + 4, words=words, seed=number)
    settings: dict[str, Any] = {
        "base": str(base),
        "experts": dict(experts),
        "tasks": {name: {"expert": name, "data": str(work / f"{name}.jsonl")} for name in names},
        "space": "layer-wise",
        "objective": "expert-kl",
        "driver": {"name": "adam", "lr": 0.05, "batch": texts},
        "splits": {"fit": texts, "select": 2, "report": 2},
        "baselines": {"grid": [], "method_grid": []},
        "budget": {"evaluations": steps},
        "device": "cpu",
        "output": str(work / "run"),
    }
    file = work / "search.yaml"
    file.write_text(yaml.safe_dump(settings, sort_keys=False))
    return file


def planned(file: Path) -> int:
    """The peak of anonymous memory that `optmerge plan` predicts, in bytes."""
    done = run_measured([ours("optmerge"), "plan", str(file), "--json"], variables=environment())
    return int(json.loads(done.output)["memory"]["peak"])


def searched(file: Path) -> Measured:
    """Run the search from its beginning, in a process of its own.

    Raises:
        SystemExit: It failed, or made fewer steps than its budget.
    """
    settings = yaml.safe_load(file.read_text())
    shutil.rmtree(settings["output"], ignore_errors=True)
    done = run_measured([ours("optmerge"), "search", str(file), "--quiet"], variables=environment())
    lines = (Path(settings["output"]) / "trajectory.jsonl").read_text().splitlines()
    steps = [record for record in map(json.loads, lines) if record["phase"] == "search" and not record.get("error")]
    if len(steps) != settings["budget"]["evaluations"]:
        raise SystemExit(f"{len(steps)} of {settings['budget']['evaluations']} steps of {file} gave a value.")
    return done
