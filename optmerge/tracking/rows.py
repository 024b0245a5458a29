"""Rows of the result table: a baseline or the search, with what select and report say of it.

row = row_of(result["rows"][0], "accuracy")
row.select, row.mean, row.interval
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result table: a baseline, or the search.

    Attributes:
        family: What competes with what: base, expert, uniform, a method's name, or search.
        select: Objective on the select split; lower is better.
        report: Task -> metric -> mean over the report split.
        mean: Mean over tasks of ``metric`` on the report split; higher is better.
        interval: The ends of the mean's 95 % interval over report examples.
        per_task: Task -> (mean, low, high) of ``metric``, likewise.
        chosen: Best of its family on select, so a user could have picked it without the report split.
        oracle: Best of its family on report, which nobody could have known.
    """

    name: str
    kind: Literal["baseline", "search"]
    family: str
    select: float | None
    report: Mapping[str, Mapping[str, float]]
    mean: float | None
    metric: str
    record: int | None = None
    evaluations: int | None = None
    seconds: float | None = None
    chosen: bool = False
    oracle: bool = False
    interval: tuple[float, float] | None = None
    per_task: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)


def baseline_family(name: str) -> str:
    """What a baseline competes with: base, expert, uniform, or a method's name.

    >>> [baseline_family(name) for name in ("base", "expert:a", "average", "uniform:0.3", "method:iso-c:1.4")]
    ['base', 'expert', 'uniform', 'uniform', 'iso-c']
    """
    if name == "average":
        return "uniform"
    kind, _, rest = name.partition(":")
    return rest.rpartition(":")[0] if kind == "method" else kind


def mean_metric(report: Mapping[str, Mapping[str, float]], metric: str) -> float | None:
    """The mean over tasks of a report metric; None where a task lacks it."""
    values = [metrics.get(metric, math.nan) for metrics in report.values()]
    mean = sum(values) / len(values) if values else math.nan
    return mean if math.isfinite(mean) else None


def row_of(entry: Mapping[str, Any], metric: str) -> Row:
    """The row of an entry of result.json; ``metric`` is that of the report where the entry does not say."""
    interval = entry.get("interval")
    return Row(
        name=entry["name"],
        kind=entry["kind"],
        family=entry.get("family") or ("search" if entry["kind"] == "search" else baseline_family(entry["name"])),
        select=entry.get("select"),
        report=entry.get("report") or {},
        mean=entry.get("mean"),
        metric=entry.get("metric") or metric,
        record=entry.get("record"),
        evaluations=entry.get("evaluations"),
        seconds=entry.get("seconds"),
        chosen=bool(entry.get("chosen")),
        oracle=bool(entry.get("oracle")),
        interval=None if interval is None else (interval["low"], interval["high"]),
        per_task={} if interval is None else {task: tuple(ends) for task, ends in interval["per_task"].items()},
    )


def chosen_names(rows: Sequence[Row]) -> set[str]:
    """The rows that are the best of their families on select."""
    best: dict[str, Row] = {}
    for row in rows:
        held = best.get(row.family)
        if row.select is not None and (held is None or held.select is None or row.select < held.select):
            best[row.family] = row
    return {row.name for row in best.values()}
