"""``optmerge report RUN``: write report.md and its pictures, and print the answer."""

from __future__ import annotations

from optmerge.cli.options import Json, RunFolder
from optmerge.cli.output import Output


def report(run: RunFolder, json: Json = False) -> None:
    """Write a run's report.md with its plots.

    Works on a run that is going on, was interrupted or has failed, too.
    """
    from optmerge.tracking.report import write_report
    from optmerge.tracking.verdict import answer
    from optmerge.tracking.view import RunView

    path = write_report(run)
    view = RunView.open(run, vectors=False)
    said = answer(view).replace("**", "").replace("`", "")
    output = Output(json)
    output.facts({"report": path, "answer": said, "status": view.status, "rows": view.rows})
    output.say(said)
    output.say(f"Report: {path}")
