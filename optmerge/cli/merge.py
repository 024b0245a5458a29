"""``optmerge merge RECIPE --to DIR``: make the merged model of a recipe."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Annotated

import typer

from optmerge.cli.completion import DTYPES, dtypes
from optmerge.cli.options import AllowPickle, Json
from optmerge.cli.output import Output, size


def merge(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A recipe file, or the folder of a run.", show_default=False)
    ],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder of the checkpoint; a new or empty one.")],
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="TYPE",
            autocompletion=dtypes,
            help=f"{', '.join(DTYPES)}; the recipe's if not given.",
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all files again, compare them with what was written, print hashes.")
    ] = False,
    allow_pickle: AllowPickle = False,
    json: Json = False,
) -> None:
    """Make the merged model of a recipe, as a checkpoint.

    A recipe can be written by hand: base, experts and coefficients are enough.
    """
    from optmerge.errors import ConfigError, did_you_mean

    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype is {dtype!r}; expected one of {', '.join(DTYPES)}.{did_you_mean(dtype, DTYPES)}")
    gc.disable()  # imports make a million objects and no garbage: a quarter of the start would be spent on looking
    try:
        from optmerge.cli.progress import progress_bar
        from optmerge.export.api import write_checkpoint

        with progress_bar() as progress:
            written = write_checkpoint(
                recipe, to, dtype=dtype, verify=verify, allow_pickle=allow_pickle, progress=progress
            )
    finally:
        gc.enable()
    output = Output(json)
    output.facts(
        {"path": written.folder, "dtype": written.dtype, "nbytes": written.nbytes, "sha256": written.digests or None}
    )
    output.say(f"Wrote {written.folder}: {size(written.nbytes)} in {written.dtype}")
    if verify:
        output.table(["file", "SHA-256 as written and as read again"], sorted(written.digests.items()))
