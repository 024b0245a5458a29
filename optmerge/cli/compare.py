"""``optmerge compare RUN RUN...``: runs side by side, with paired intervals where they scored the same examples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optmerge.cli.completion import runs as runs_below
from optmerge.cli.options import Json
from optmerge.cli.output import Output


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", autocompletion=runs_below, help="Folders of runs; the first is the reference."),
    ],
    picture: Annotated[
        Path | None,
        typer.Option("--picture", metavar="FILE.png", help="Draw all trajectories into one PNG; never overwritten."),
    ] = None,
    json: Json = False,
) -> None:
    """Compare runs side by side.

    The settings that differ, what each run reached at which cost, and whether the difference is luck.
    """
    from optmerge.errors import ConfigError

    if len(runs) < 2:
        raise ConfigError(f"compare was given one run ({runs[0]}); expected two or more: optmerge compare RUN RUN...")
    if picture is not None and (picture.suffix.lower() != ".png" or picture.exists()):
        why = "exists, and is not overwritten" if picture.exists() else "does not end in .png"
        raise ConfigError(f"--picture is {picture}, which {why}. Choose another name.")
    from optmerge.tracking.compare import compare_runs

    comparison = compare_runs(runs)
    output = Output(json)
    output.facts({**comparison.to_dict(), "picture": picture})
    output.say(comparison.markdown())
    if picture is not None:
        from optmerge.tracking.compare_plots import overlay_figure
        from optmerge.tracking.plots import save_figure

        save_figure(overlay_figure(runs), picture)
        output.say(f"Wrote {picture}")
