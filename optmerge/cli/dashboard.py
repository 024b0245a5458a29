"""``optmerge dashboard RUN``: optuna-dashboard on a run's journal mirror."""

from __future__ import annotations

from typing import Annotated

import typer

from optmerge.cli.options import Json, RunFolder
from optmerge.cli.output import Output


def dashboard(
    run: RunFolder,
    host: Annotated[str, typer.Option(metavar="HOST", help="Who may look; localhost is this machine alone.")] = (
        "localhost"
    ),
    port: Annotated[int, typer.Option(metavar="N", help="Port of the page.")] = 8080,
    json: Json = False,
) -> None:
    """Open a run in optuna-dashboard.

    Also while the search goes on. It needs the extra `dashboard`, and stays until Ctrl-C.
    """
    from optmerge.tracking.dashboard import serve_dashboard

    output = Output(json)
    url = f"http://{host}:{port}"

    def listening() -> None:
        output.facts({"run": run, "url": url})
        output.say(f"Dashboard of {run}: {url} (Ctrl-C ends it)")

    try:
        serve_dashboard(run, host=host, port=port, listening=listening)
    except KeyboardInterrupt:
        output.note("")
