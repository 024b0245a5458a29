"""Another merge of a run's front, by how much each task matters.

    picked = pick(Path("runs/first"), parse_weights("code=2,news=1"))
    picked.recipe                 # the path of its recipe
    picked.result                 # the run's result.json with this merge's scores in place of the search's

A merge's sum is that of its values on select, each times its task's weight; the lowest is picked, the earliest of
equals. Tasks that are not named count 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optmerge.errors import ConfigError, RunError, did_you_mean
from optmerge.runner.folder import RunFolder
from optmerge.runner.front_folder import read_front, recipe_name


@dataclass(frozen=True, slots=True)
class Pick:
    """A merge of a front.

    Attributes:
        record: Its number in the trajectory.
        recipe: The file of its recipe.
        select: Task -> its value on select, lower is better.
        weights: Task -> the weight that picked it.
        result: A run's result with this merge's row in place of the search's.
    """

    record: int
    recipe: Path
    select: Mapping[str, float]
    weights: Mapping[str, float]
    result: Mapping[str, Any]


def parse_weights(text: str) -> dict[str, float]:
    """Weights from the command line.

    >>> parse_weights("code=2, news=0.5")
    {'code': 2.0, 'news': 0.5}

    Raises:
        ConfigError: The text is no list of ``task=weight``, or names a task twice.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        task, equals, number = (word.strip() for word in part.rpartition("="))
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not equals or not task or not math.isfinite(weight):
            raise ConfigError(f"--weights has {part.strip()!r}; expected task=weight, with commas between: a=2,b=1.")
        if task in weights:
            raise ConfigError(f"--weights names the task {task!r} twice; give it one weight.")
        weights[task] = weight
    return weights


def pick(run: Path, weights: Mapping[str, float]) -> Pick:
    """The merge on a run's front with the lowest weighted sum of select values.

    Args:
        run: Folder of a run that has ended.
        weights: Task -> weight; tasks that are not named count 1.

    Raises:
        RunError: The folder is no run, or has no front.
        ConfigError: A weight is of no task or below zero, or all are zero.
    """
    folder = RunFolder.open(run)
    front = read_front(folder)
    if front is None:
        raise RunError(
            f"{run} has no front to pick from: the search has not ended, has one task, or was told to keep none "
            "(budget.front: 0). Its result is exported without --weights."
        )
    full = _completed(weights, front["tasks"])
    members = [member for member in front["members"] if member["on_front"]]
    sums = [sum(full[task] * member["select"][task] for task in front["tasks"]) for member in members]
    best = members[sums.index(min(sums))]
    result = folder.read_json("result.json") or {}
    return Pick(best["record"], run / recipe_name(best["record"]), best["select"], full, _scored(result, best))


def _completed(weights: Mapping[str, float], tasks: Sequence[str]) -> dict[str, float]:
    for task, weight in weights.items():
        if task not in tasks:
            raise ConfigError(
                f"--weights names the task {task!r}; expected tasks of the run ({', '.join(tasks)})."
                + did_you_mean(task, tasks)
            )
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"--weights has {task}={weight:g}; expected 0 (does not matter) or a number above it.")
    full = {task: float(weights.get(task, 1.0)) for task in tasks}
    if not any(full.values()):
        raise ConfigError("--weights sets every task to 0, so nothing tells the merges apart; give one a weight.")
    return full


def _scored(result: Mapping[str, Any], member: Mapping[str, Any]) -> dict[str, Any]:
    """The result with the member's row in place of the search's, for tables of scores."""
    metric = result.get("metric", "accuracy")
    report = member["report"] or {}
    values = [values[metric] for values in report.values() if metric in values]
    row = {
        "name": f"front, record {member['record']}",
        "kind": "search",
        "report": report,
        "mean": sum(values) / len(values) if values else None,
        "metric": metric,
    }
    rows = [other for other in result.get("rows", []) if other.get("kind") != "search"]
    return {**result, "rows": [*rows, row]}
