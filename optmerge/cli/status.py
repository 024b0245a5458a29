"""``optmerge status RUN``: where a run stands, also while it is running."""

from __future__ import annotations

from optmerge.cli.options import Json, RunFolder
from optmerge.cli.output import Output, duration, number


def status(run: RunFolder, json: Json = False) -> None:
    """Show how far a run is, and its best value so far."""
    from optmerge.runner.alarms import raised_alarms
    from optmerge.tracking.view import RunView

    view = RunView.open(run, vectors=False)
    best, baseline, alarms = view.best, view.best_baseline, raised_alarms(view.records)
    limit = view.budget.get("evaluations")
    output = Output(json)
    output.facts(
        {
            "folder": run,
            "status": view.status,
            "reason": view.reason,
            "evaluations": view.evaluations,
            "budget": view.budget,
            "seconds": view.seconds,
            "failed": len(view.failed),
            "alarms": alarms,
            "best": None if best is None else {"record": best.record, "select": best.value, "at": best.evaluations},
            "best_baseline": None if baseline is None else {"name": baseline[0], "select": baseline[1]},
        }
    )
    rows = [
        ["status", f"{view.status}{f' ({view.reason})' if view.reason else ''}"],
        ["evaluations", f"{view.evaluations}{f' of {limit}' if limit else ''}"],
        ["time", duration(view.seconds)],
        ["best on select", "-" if best is None else f"{number(best.value)} after {best.evaluations} evaluations"],
        ["best baseline", "-" if baseline is None else f"{number(baseline[1])} ({baseline[0]})"],
    ]
    if view.failed:
        rows.append(["failed", f"{len(view.failed)} evaluations, last: {view.failed[-1].error}"])
    rows += [["ALARM", f"{alarm.kind}: {alarm.sentence}"] for alarm in alarms]
    output.table(["run", str(run)], rows)
    if view.status in ("interrupted", "failed"):
        output.say(f"\nContinue with: optmerge resume {run}")
