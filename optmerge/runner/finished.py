"""Finished searches beside other merges: opened, and refused where they cannot be compared.

path, folder, result = finished_search(Path("runs/first"))
require_same(path, folder, manifest)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optmerge.config.methods import MethodSettings
from optmerge.config.schema import SearchConfig
from optmerge.errors import RunError
from optmerge.runner.folder import RunFolder

FinishedSearch = tuple[Path, RunFolder, Mapping[str, Any]]


def finished_search(path: Path) -> FinishedSearch:
    """A finished search: its folder and its result.

    Raises:
        RunError: There is none.
    """
    folder = RunFolder.open(path)
    result = folder.read_json("result.json")
    if result is None or result.get("status") != "finished":
        raise RunError(
            f"--against {path}: that search is not finished, so there is no best recipe to compare with. Go on with "
            f"`optmerge resume {path}`."
        )
    return path, folder, result


def needs_of_search(config: SearchConfig) -> tuple[str, ...]:
    """What a search needs beside weights."""
    terms = [term for stage in range(len(config.stages)) for term in config.at_stage(stage).objective.terms]
    chosen_among = [each for alternative in config.alternatives for each in alternative.configs.values()]
    methods = [each for each in (config.method, *config.directions, *chosen_among) if isinstance(each, MethodSettings)]
    labels = any(term.labelled for term in terms) or any(method.facts.labels for method in methods)
    return ("weights", "inputs", *(["labels"] if labels else []))


def require_same(path: Path, folder: RunFolder, manifest: Mapping[str, Any]) -> None:
    """Refuse a search whose recipe cannot stand beside the others.

    Raises:
        RunError: Its models differ, or its report or select examples, so that some of these may have been its fit
            examples.
    """
    theirs = folder.read_json("manifest.json") or {}
    apart = [
        f"the model {name}"
        for name, entry in manifest["models"].items()
        if theirs.get("models", {}).get(name, {}).get("sha256") != entry["sha256"]
    ]
    apart += [f"the model {name}" for name in theirs.get("models", {}) if name not in manifest["models"]]
    apart += [
        f"the report examples of the task {task}"
        for task, digest in manifest["report_examples"].items()
        if theirs.get("report_examples", {}).get(task) != digest
    ]
    apart += [
        f"the number of select examples of the task {task}, some of which may have been its fit examples"
        for task, sizes in manifest["splits"].items()
        if theirs.get("splits", {}).get(task, {}).get("select") != sizes["select"]
    ]
    if theirs.get("heads") != manifest["heads"]:
        apart.append(f"heads ({theirs.get('heads')} there, {manifest['heads']} here)")
    if apart:
        raise RunError(
            f"--against {path}: it was another search; what differs: {', '.join(apart)}. Name searches of the models, "
            "data and splits that this search file has."
        )
