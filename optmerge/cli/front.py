"""``optmerge front RUN``: the merges that no other beats on every task, as tables and a picture."""

from __future__ import annotations

from optmerge.cli.options import Json, RunFolder
from optmerge.cli.output import Output


def front(run: RunFolder, json: Json = False) -> None:
    """Show which merges of a run no other beats on every task.

    Tables of each task's objective on select and metric on report, and front.png in the run's folder. While the search
    goes on, what it knows so far. `optmerge export RUN --weights a=2,b=1` takes one of them.
    """
    from optmerge.errors import RunError
    from optmerge.tracking.front import open_front
    from optmerge.tracking.front_plots import front_figure
    from optmerge.tracking.plots import save_figure
    from optmerge.tracking.view import RunView

    view = RunView.open(run, vectors=False)
    shown = open_front(view)
    if shown is None:
        why = "it has one task" if len(view.settings.get("tasks") or {}) < 2 else "no candidate was judged yet"
        raise RunError(f"{run} has no front: {why}. A front is of merges that were judged on two tasks or more.")
    path = run / "front.png"
    save_figure(front_figure(shown), path)
    output = Output(json)
    output.facts({**shown.to_dict(), "picture": path})
    output.say(shown.markdown())
    output.say(f"Picture: {path}")
