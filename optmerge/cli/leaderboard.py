"""``optmerge leaderboard FOLDER``: all finished runs below a folder in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optmerge.cli.options import Json
from optmerge.cli.output import Output


def leaderboard(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the runs are, at any depth.")] = Path("runs"),
    json: Json = False,
) -> None:
    """Show all finished runs below a folder, the best first.

    Runs on other models or report examples are in tables of their own. What is damaged or unfinished is named.
    """
    from optmerge.tracking.ranking import rank_runs

    ranking = rank_runs(folder)
    output = Output(json)
    output.facts(ranking.to_dict())
    output.say(ranking.markdown())
