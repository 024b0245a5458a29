"""``optmerge resume RUN``: continue a run from wherever it was interrupted."""

from __future__ import annotations

from optmerge.cli.options import Json, Quiet, RunFolder, Verbose
from optmerge.cli.output import Output


def resume(run: RunFolder, json: Json = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """Continue an interrupted run.

    Its trajectory will be that of a run that was never interrupted.
    """
    from optmerge.cli.running import configure_logging, shown, watch

    configure_logging(quiet=quiet, verbose=verbose)
    from optmerge.api import resume as run_resume

    watch(lambda stop: run_resume(run, terminal=shown(quiet=quiet, json=json), stop=stop), run, Output(json))
