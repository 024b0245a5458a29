"""The result of a run: one row per baseline and for the search, each with its interval, and paired comparisons.

    rows = make_rows(scored, "accuracy", seed=0)
    comparisons = make_comparisons(winner, scored, "accuracy", seed=0)

Everything is of the report split; the intervals are bootstraps over its examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optmerge.records import Record, Vector
from optmerge.runner.bootstrap import Interval, bootstrap, paired_bootstrap

Scores = Mapping[str, Mapping[str, Vector]]


@dataclass(frozen=True, eq=False)
class Scored:
    """A recipe with its select and report evaluations.

    Attributes:
        name: As in the table.
        family: What competes with what; "search" for the search itself.
        select: Its record on the select split.
        report: Its record on the report split.
        scores: Task -> metric -> float64[n] on the report split.
        evaluations: How many it took to find it.
        seconds: What that took.
    """

    name: str
    family: str
    select: Record
    report: Record
    scores: Scores
    evaluations: int = 0
    seconds: float = 0.0


def main_metric(labelled: bool) -> str:
    """What tables lead with: accuracy where the report has labels, else agreement with the expert."""
    return "accuracy" if labelled else "agreement"


def make_rows(scored: Sequence[Scored], metric: str, *, seed: int) -> list[dict[str, Any]]:
    """The rows of result.json; the best of every family on select is ``chosen``, the best on report ``oracle``."""
    chosen = {row.name for row in _best_of_families(scored)}
    oracles: dict[str, str] = {}
    for family in {row.family for row in scored}:
        members = [row for row in scored if row.family == family]
        oracles[family] = max(members, key=lambda row: mean_metric(row, metric)).name
    return [
        {
            "name": row.name,
            "kind": "search" if row.family == "search" else "baseline",
            "family": row.family,
            "record": row.report.id,
            "select": row.select.value,
            "report": {task: dict(values) for task, values in row.report.metrics.items()},
            "mean": mean_metric(row, metric),
            "interval": interval_entry(bootstrap(of_metric(row, metric), seed=seed)),
            "metric": metric,
            "evaluations": row.evaluations,
            "seconds": row.seconds,
            "chosen": row.name in chosen,
            "oracle": oracles[row.family] == row.name,
        }
        for row in scored
    ]


def make_comparisons(winner: Scored, scored: Sequence[Scored], metric: str, *, seed: int) -> list[dict[str, Any]]:
    """The winner against the member of every baseline family that select would choose, paired on the same examples."""
    comparisons = []
    for rival in _best_of_families(scored):
        if rival.family == "search":
            continue
        interval = paired_bootstrap(of_metric(winner, metric), of_metric(rival, metric), seed=seed)
        comparisons.append(
            {
                "name": winner.name,
                "against": rival.name,
                "difference": interval.mean,
                "low": interval.low,
                "high": interval.high,
                "level": 0.95,
                "per_task": {task: list(values) for task, values in interval.per_task.items()},
            }
        )
    return comparisons


def mean_metric(row: Scored, metric: str) -> float:
    """The mean over tasks of a report metric."""
    values = [values[metric] for values in row.report.metrics.values()]
    return sum(values) / len(values)


def of_metric(row: Scored, metric: str) -> dict[str, Vector]:
    """Task -> float64[n], the scores of one report metric."""
    return {task: arrays[metric] for task, arrays in row.scores.items()}


def interval_entry(interval: Interval) -> dict[str, Any]:
    """An interval for result.json: of the mean, and of every task as [mean, low, high]."""
    per_task = {task: list(values) for task, values in interval.per_task.items()}
    return {"low": interval.low, "high": interval.high, "level": 0.95, "per_task": per_task}


def _best_of_families(scored: Sequence[Scored]) -> list[Scored]:
    best: dict[str, Scored] = {}
    for row in scored:
        if row.select.value is None:
            continue
        held = best.get(row.family)
        if held is None or held.select.value is None or row.select.value < held.select.value:
            best[row.family] = row
    return list(best.values())
