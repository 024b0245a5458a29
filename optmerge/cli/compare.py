"""``optmerge compare RUN RUN...``: runs side by side, with paired intervals where they scored the same examples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optmerge.cli.options import Json
from optmerge.cli.output import Output


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs; the first is the reference.")],
    json: Json = False,
) -> None:
    """Compare runs side by side.

    The settings that differ, what each run reached at which cost, and whether the difference is luck.
    """
    from optmerge.errors import ConfigError

    if len(runs) < 2:
        raise ConfigError(f"compare was given one run ({runs[0]}); expected two or more: optmerge compare RUN RUN...")
    from optmerge.tracking.compare import compare_runs

    comparison = compare_runs(runs)
    output = Output(json)
    output.facts(comparison.to_dict())
    output.say(comparison.markdown())
