"""``optmerge report RUN``: write report.html, report.md and its pictures, and print the answer."""

from __future__ import annotations

from optmerge.cli.options import Json, RunFolder
from optmerge.cli.output import Output


def report(run: RunFolder, json: Json = False) -> None:
    """Write a run's report: one web page, and the same in Markdown.

    Works on a run that is going on, was interrupted or has failed, too.
    """
    from optmerge.tracking.page import PAGE
    from optmerge.tracking.report import write_report
    from optmerge.tracking.verdict import answer
    from optmerge.tracking.view import RunView

    path = write_report(run)
    view = RunView.open(run, vectors=False)
    said = answer(view).replace("**", "").replace("`", "")
    output = Output(json)
    page = path.with_name(PAGE)
    output.facts({"report": path, "page": page, "answer": said, "status": view.status, "rows": view.rows})
    output.say(said)
    output.say(f"Report: {page} (in Markdown: {path})")
