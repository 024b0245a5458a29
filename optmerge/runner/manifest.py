"""The manifest: what a run was made of, so that it can be repeated, and so that a resume notices what has changed.

manifest = make_manifest(problem)
check_manifest(stored, manifest, folder)
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from optmerge.config.load import dump_config
from optmerge.errors import RunError
from optmerge.merging import kernels
from optmerge.runner.own_methods import method_hashes
from optmerge.runner.terms import term_hashes

if TYPE_CHECKING:
    from optmerge.runner.problem import Problem

PACKAGES = (
    "optmerge",
    "torch",
    "transformers",
    "safetensors",
    "numpy",
    "cma",
    "optuna",
    "datasets",
    "peft",
    "wandb",
    "lm-eval",
)


def make_manifest(problem: Problem) -> dict[str, Any]:
    """The search itself, versions, seed, hardware, and the hashes of models and data."""
    family = problem.family
    checkpoints = {"base": family.base, **family.experts}
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv[1:],
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "search": yaml.safe_load(dump_config(problem.config)),
        "seed": problem.config.seed,
        "hardware": hardware(problem.spread.devices),
        "models": {
            name: {"reference": c.reference, "revision": c.revision, "sha256": c.sha256()}
            for name, c in checkpoints.items()
        },
        "data": {name: data.sha256 for name, data in problem.calibration.tasks.items()},
        "terms": {k: v for s in problem.stages for k, v in term_hashes(s.config.objective, s.objective).items()},
        "methods": method_hashes(problem.directions),
        "start": _file_hash(problem.config.space.recipe),
        "labelled_terms": list(dict.fromkeys(name for s in problem.stages for name in s.objective.answered)),
        "splits": {
            name: {split: data.splits[split].size for split in data.splits}
            for name, data in problem.calibration.tasks.items()
        },
        "notes": list(problem.calibration.notes),
        "dimension": problem.space.dimension,
        "variables": list(problem.space.names.compact),
        "stages": [
            {
                "driver": stage.config.driver.name,
                "granularity": stage.config.space.granularity,
                "dimension": stage.space.dimension,
                "variables": list(stage.space.names.compact),
            }
            for stage in (problem.stages if len(problem.stages) > 1 else ())
        ],
        "report_examples": {
            name: _hash(data.splits["report"].keys) for name, data in problem.calibration.tasks.items()
        },
        "kind": family.kind,
        "auto_class": family.auto_class,
        "heads": family.heads,
        "gradient": problem.engine.form,
        "kept": list(problem.kept),
        "layout": dict(problem.spread.layout) or None,
        "dtype": str(problem.dtype).removeprefix("torch."),
        "git": git_state(Path.cwd()),
    }


def as_begun(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What `open_problem` is to choose as it was chosen when a run began, as keyword arguments."""
    chosen = {"form": "gradient", "kept": "kept", "layout": "layout"}
    return {argument: manifest.get(key) for argument, key in chosen.items()}


def hardware(devices: Sequence[torch.device]) -> dict[str, Any]:
    """What the arithmetic's last bits depend on."""
    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "device": ", ".join(map(str, devices)),
        "accelerator": torch.cuda.get_device_name(devices[0]) if devices[0].type == "cuda" else None,
        "kernels": kernels.kind(devices[0]),
    }


def check_manifest(stored: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Refuse to resume what would not be the same run.

    Raises:
        RunError: A model, a data file, a term's or a method's file, the machine, the thread count or torch differs; all
            differences are named.
    """
    problems = changed_content(stored, now)
    for key, value in stored["hardware"].items():
        if now["hardware"].get(key) != value:
            problems.append(f"{key} was {value!r} and is {now['hardware'].get(key)!r}")
    for name in ("torch", "transformers"):
        if now["versions"][name] != stored["versions"][name]:
            problems.append(f"{name} was {stored['versions'][name]} and is {now['versions'][name]}")
    if problems:
        hint = ""
        if now["hardware"]["threads"] != stored["hardware"]["threads"]:
            hint = f" Set OMP_NUM_THREADS={stored['hardware']['threads']} for the thread count."
        raise RunError(
            f"{folder} cannot be resumed: {'; '.join(problems)}. A resumed run must give what an uninterrupted one "
            f"would.{hint} Restore what changed, or start a new search with --output in another folder."
        )


def check_content(stored: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Refuse to look again at a run whose models, data or terms are not there as they were; any machine will do.

    Raises:
        RunError: Something differs; all differences are named.
    """
    problems = changed_content(stored, now)
    if problems:
        raise RunError(
            f"{folder} cannot be measured again: {'; '.join(problems)}. Restore what changed, or search again."
        )


def changed_content(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Which models, data, terms and users' methods are not those of a stored manifest."""
    problems: list[str] = []
    for name, entry in stored["models"].items():
        found = now["models"].get(name, {}).get("sha256")
        if found != entry["sha256"]:
            problems.append(f"the model {name} ({entry['reference']}) has changed")
    for name, digest in stored["data"].items():
        if now["data"].get(name) != digest:
            problems.append(f"the data of task {name} has changed")
    if stored.get("start") != now.get("start"):
        problems.append("the recipe that the search starts from has changed")
    for kind in ("terms", "methods"):
        for name, digest in stored.get(kind, {}).items():
            if now[kind].get(name) != digest:
                problems.append(f"the {name} has changed")
    return problems


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and cleanness of the git checkout that ``folder`` is in, or None."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "clean": git("status", "--porcelain") == ""}


def _file_hash(name: str | None) -> str | None:
    return None if name is None else hashlib.sha256(Path(name).read_bytes()).hexdigest()


def _hash(keys: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
