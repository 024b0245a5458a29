"""Options that several verbs share, and how they become overrides of the search file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from optmerge.cli.completion import runs, settings

SearchFile = Annotated[Path, typer.Argument(metavar="FILE", help="The search file.", show_default=False)]
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False, autocompletion=runs)
]
Json = Annotated[bool, typer.Option("--json", help="Print the facts as JSON on stdout.")]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        autocompletion=settings,
        help="Change a key of the search file, e.g. driver.lr=0.02; repeat for more.",
    ),
]
Limit = Annotated[
    int | None, typer.Option("--limit", metavar="N", help="Look at no more than N examples per task and split.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log every step.")]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read pickle-only checkpoints, which can run code when opened.")
]


def overrides(
    sets: list[str] | None,
    *,
    limit: int | None = None,
    output: Path | None = None,
    wandb: str | None = None,
    seed: int | None = None,
    budget: int | None = None,
    allow_pickle: bool = False,
) -> list[str]:
    """``--set`` and the options with a name of their own, as ``dotted.key=value``; the latter win."""
    named = {
        "limit": limit,
        # The file's own output is relative to the file; this one is relative to where the command is typed.
        "output": None if output is None else str(output.expanduser().absolute()),
        "tracking.wandb": wandb,
        "seed": seed,
        "budget.evaluations": budget,
        "allow_pickle": allow_pickle or None,
    }
    return [*(sets or []), *(f"{key}={json.dumps(value)}" for key, value in named.items() if value is not None)]
