"""What a run's signals were, for the views.

    curves(view)["top-share"]["topic"]        # what the collapse alarm compares, over evaluations

The alarms themselves are those that the run recorded (`optmerge.runner.alarms.raised_alarms`).
"""

from __future__ import annotations

from collections.abc import Mapping

from optmerge.config.alarms import AlarmsConfig
from optmerge.records import EvaluationCount, Record
from optmerge.runner.alarms import by_task
from optmerge.tracking.view import RunView

Curve = tuple[tuple[int, float], ...]
"""(evaluations on fit, value), in order."""


def alarm_settings(view: RunView) -> AlarmsConfig:
    """The run's thresholds."""
    return AlarmsConfig.model_validate(view.settings.get("alarms") or {})


def curves(view: RunView) -> Mapping[str, Mapping[str, Curve]]:
    """What the collapse alarm looks at, on select: measure -> task -> curve; nothing for a run without signals.

    ``agreement`` is a share of the start's, ``top-share`` an excess over the expert's, ``marginal-entropy`` a share of
    the expert's.
    """
    found: dict[str, dict[str, list[tuple[int, float]]]] = {"agreement": {}, "top-share": {}, "marginal-entropy": {}}
    count = EvaluationCount()
    start: Record | None = None
    for record in view.records:
        evaluations = count(record)
        if record.phase != "select" or not record.signals:
            continue
        start = start or record
        agreements = by_task(record.signals, "agreement")
        for task, agreement in agreements.items():
            before = start.signals.get(f"agreement/{task}", 0.0)
            expert = record.signals[f"expert-marginal-entropy/{task}"]
            excess = record.signals[f"top-share/{task}"] - record.signals[f"expert-top-share/{task}"]
            values = {
                "agreement": agreement / before if before > 0 else None,
                "top-share": excess,
                "marginal-entropy": record.signals[f"marginal-entropy/{task}"] / expert if expert > 0 else None,
            }
            for measure, value in values.items():
                if value is not None:
                    found[measure].setdefault(task, []).append((evaluations, value))
    return {
        measure: {task: tuple(points) for task, points in tasks.items()} for measure, tasks in found.items() if tasks
    }
