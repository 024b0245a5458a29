"""``optmerge merge RECIPE --to DIR``: make the merged model of a recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from optmerge.cli.options import AllowPickle, Json
from optmerge.cli.output import Output

DTYPES = ("float32", "bfloat16", "float16")


def merge(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A recipe file, or the folder of a run.", show_default=False)
    ],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder of the checkpoint; a new or empty one.")],
    dtype: Annotated[
        str | None, typer.Option("--dtype", metavar="TYPE", help=f"{', '.join(DTYPES)}; the recipe's if not given.")
    ] = None,
    allow_pickle: AllowPickle = False,
    json: Json = False,
) -> None:
    """Make the merged model of a recipe, as a checkpoint."""
    from optmerge.errors import ConfigError, did_you_mean

    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype is {dtype!r}; expected one of {', '.join(DTYPES)}.{did_you_mean(dtype, DTYPES)}")
    from optmerge.cli.progress import progress_bar
    from optmerge.export.api import merge as write
    from optmerge.merging.recipe import Recipe

    path = recipe / "recipe.yaml" if recipe.is_dir() else recipe
    loaded = Recipe.load(path)
    if dtype is not None:
        loaded = replace(loaded, dtype=dtype)
    with progress_bar() as progress:
        written = write(loaded, to, relative_to=path.parent, allow_pickle=allow_pickle, progress=progress)
    output = Output(json)
    output.facts({"path": written, "dtype": loaded.dtype})
    output.say(f"Wrote {written}")
