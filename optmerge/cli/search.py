"""``optmerge search FILE``: run a search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optmerge.cli.options import AllowPickle, Json, Limit, Quiet, SearchFile, Sets, Verbose, overrides
from optmerge.cli.output import Output


def search(
    file: SearchFile,
    sets: Sets = None,
    limit: Limit = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder of the run; a new or empty one.")
    ] = None,
    wandb: Annotated[
        str | None, typer.Option("--wandb", metavar="MODE", help="Weights & Biases: online, offline or disabled.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="What all randomness derives from.")] = None,
    budget: Annotated[
        int | None, typer.Option("--budget", metavar="N", help="Evaluations on the fit split; baselines are extra.")
    ] = None,
    allow_pickle: AllowPickle = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Search: score the baselines, search, report.

    Ctrl-C finishes the current evaluation, saves, and prints the command that continues; twice stops at once.
    """
    from optmerge.config.load import load_config

    changes = overrides(
        sets, limit=limit, output=output, wandb=wandb, seed=seed, budget=budget, allow_pickle=allow_pickle
    )
    config = load_config(file, overrides=changes)
    from optmerge.cli.running import configure_logging, watch

    configure_logging(quiet=quiet, verbose=verbose)
    from optmerge.api import search as run_search

    watch(
        lambda stop: run_search(config, root=file.parent, terminal=not quiet, stop=stop),
        file.parent / config.output,
        Output(json),
    )
