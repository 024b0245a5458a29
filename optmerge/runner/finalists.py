"""Finalists: the best iterates by select, scored on report before any of them is called best.

    iterates = best_iterates(records, 3)                     # the first one is select's choice, and stays first
    make_finalists(scored, "accuracy", seed=0, leads=leads)  # for result.json

The report split never steers: that another finalist is better there is said, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from optmerge.records import Record
from optmerge.runner.alarms import COLLAPSE
from optmerge.runner.bootstrap import bootstrap, paired_bootstrap
from optmerge.runner.result import Scored, interval_entry, mean_metric, of_metric

Lead = tuple[float, float, float]
"""How far select's choice leads on select, in units of the objective, and the ends of the interval."""


def best_iterates(
    records: Sequence[Record],
    count: int,
    *,
    collapsed: bool = False,
    objectives: Sequence[Any] = (),
    merge: Callable[[Record], object] = lambda record: record.vector_sha256,
) -> list[Record]:
    """The ``count`` iterates with the lowest values on select, best first, the earliest of equals first.

    Args:
        records: Of a trajectory.
        count: At most so many; merges that are equal count once.
        collapsed: Whether iterates that an alarm calls collapsed may be among them.
        objectives: Of each stage of a schedule; only iterates that the last one's objective judged are compared.
        merge: What two records of the same merge have in common; vectors of different search spaces can be one.
    """
    able = [
        record
        for record in records
        if record.phase == "select" and record.value is not None and (collapsed or COLLAPSE not in record.alarms)
    ]
    if objectives:
        alike = judged_alike(objectives, max((record.stage for record in able), default=0))
        able = [record for record in able if record.stage in alike]
    distinct: dict[object, Record] = {}
    for record in sorted(able, key=lambda record: (record.value, record.id)):
        if len(distinct) == count:
            break
        distinct.setdefault(merge(record), record)
    return list(distinct.values())


def judged_alike(objectives: Sequence[Any], number: int) -> range:
    """The stages up to ``number`` whose select values can be compared with its own: none in between judges otherwise.

    >>> judged_alike(["kl", "kl", "accuracy", "accuracy"], 3), judged_alike(["kl", "accuracy", "kl"], 2)
    (range(2, 4), range(2, 3))
    """
    first = number
    while first and objectives[first - 1] == objectives[number]:
        first -= 1
    return range(first, number + 1)


def make_finalists(
    finalists: Sequence[Scored], metric: str, *, seed: int, leads: Sequence[Lead | None]
) -> list[dict[str, Any]]:
    """The finalists for result.json, select's choice first; the others with what tells them from it.

    Args:
        finalists: In select's order.
        metric: Which report metric.
        seed: Of the bootstraps.
        leads: Of select's choice over each of the others, on select; None where it is not known.
    """
    best = finalists[0]
    entries = []
    for rank, scored in enumerate(finalists, 1):
        entry = {
            "rank": rank,
            "iterate": scored.select.id,
            "select": scored.select.value,
            "record": scored.report.id,
            "mean": mean_metric(scored, metric),
            "interval": interval_entry(bootstrap(of_metric(scored, metric), seed=seed)),
        }
        if rank > 1:
            apart = paired_bootstrap(of_metric(best, metric), of_metric(scored, metric), seed=seed)
            entry["behind"] = {"difference": apart.mean, "low": apart.low, "high": apart.high}
            lead = leads[rank - 2]
            if lead is not None:
                entry["lead"] = dict(zip(("difference", "low", "high"), lead, strict=True))
        entries.append(entry)
    return entries
