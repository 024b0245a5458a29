"""``optmerge baseline FILE``: every merging method that fits, at its published settings, in one leaderboard."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from optmerge.cli.completion import methods as method_names
from optmerge.cli.completion import runs
from optmerge.cli.options import AllowPickle, Json, Limit, Quiet, SearchFile, Sets, Verbose, overrides
from optmerge.cli.output import Output


def baseline(
    file: SearchFile,
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            metavar="A,B",
            autocompletion=method_names,
            help="Only these methods; all that fit if not given.",
        ),
    ] = None,
    tune: Annotated[
        int | None,
        typer.Option(
            "--tune",
            metavar="N",
            min=1,
            help="Also tune each method's own settings and scale, N evaluations on select.",
        ),
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            "--against",
            metavar="RUN",
            autocompletion=runs,
            help="A finished search of the same models and data; may be repeated.",
        ),
    ] = None,
    sets: Sets = None,
    limit: Limit = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Its folder; the search's, with -baseline behind it."),
    ] = None,
    allow_pickle: AllowPickle = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score every method as published, in one leaderboard.

    Beside them stand base, experts and uniform merges, all judged by the evaluator of a search. Rows are kept as they
    are made: the same command goes on where it was stopped.
    """
    from optmerge.config.load import load_config

    config = load_config(file, overrides=overrides(sets, limit=limit, allow_pickle=allow_pickle))
    from optmerge.cli.progress import progress_bar
    from optmerge.cli.running import configure_logging, interruptible

    configure_logging(quiet=quiet, verbose=verbose)
    from optmerge.runner.leaderboard import SUFFIX, measure_leaderboard
    from optmerge.tracking.leaderboard import board_table, legend, write_leaderboard

    with progress_bar() as progress, interruptible(shlex.join(["optmerge", *sys.argv[1:]])) as stop:
        board = measure_leaderboard(
            config,
            root=file.parent,
            folder=output or file.parent / f"{config.output}{SUFFIX}",
            methods=None if methods is None else [name.strip() for name in methods.split(",")],
            tune=tune,
            against=against or [],
            progress=progress,
            stop=stop,
        )
    page = write_leaderboard(board)
    shown = Output(json)
    shown.facts({"page": page, **board.to_dict()})
    head, rows = board_table(board)
    shown.table(head, rows, right=[title for title in head if title not in ("", "kind", "worst task", "needs", "at")])
    shown.say()
    for sentence in legend(board):
        shown.say(sentence)
    for line in board.lines:
        if line.row.error:
            shown.say(f"{line.row.name} failed: {line.row.error}")
    for name, reason in board.left_out.items():
        shown.say(f"{name} is left out: {reason}.")
    shown.say(f"\nLeaderboard: {page}")
