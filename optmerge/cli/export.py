"""``optmerge export RUN``: the best recipe of a run as a checkpoint, a mergekit config, or a table of coefficients."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optmerge.cli.options import AllowPickle, Json, RunFolder
from optmerge.cli.output import Output


def export(
    run: RunFolder,
    format: Annotated[
        str, typer.Option("--format", "-f", metavar="FORMAT", help="checkpoint, mergekit or coefficients.")
    ],
    to: Annotated[Path, typer.Option("--to", metavar="PATH", help="Folder or file to write; never overwritten.")],
    allow_pickle: AllowPickle = False,
    json: Json = False,
) -> None:
    """Write a run's best recipe for others to use.

    checkpoint: a transformers folder with tokenizer and model card (one folder per task where heads differ).
    mergekit: a config that reproduces the merge. coefficients: .yaml, .json or .csv.
    """
    from optmerge.cli.progress import progress_bar
    from optmerge.export.api import export as write

    with progress_bar() as progress:
        written = write(run, format, to, allow_pickle=allow_pickle, progress=progress)
    output = Output(json)
    output.facts({"format": format, "path": written})
    output.say(f"Wrote {written}")
