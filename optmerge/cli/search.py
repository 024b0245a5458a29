"""``optmerge search FILE``: run a search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optmerge.cli.completion import modes
from optmerge.cli.options import AllowPickle, Json, Limit, Quiet, Sets, Verbose, overrides
from optmerge.cli.output import Output

if TYPE_CHECKING:
    from optmerge.runner.reproduce import Mismatch


def search(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="The search file.", show_default=False)] = None,
    sets: Sets = None,
    limit: Limit = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder of the run; a new or empty one.")
    ] = None,
    wandb: Annotated[
        str | None,
        typer.Option(
            "--wandb", metavar="MODE", autocompletion=modes, help="Weights & Biases: online, offline or disabled."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="What all randomness derives from.")] = None,
    budget: Annotated[
        int | None, typer.Option("--budget", metavar="N", help="Evaluations on the fit split; baselines are extra.")
    ] = None,
    reproduce: Annotated[
        Path | None,
        typer.Option(metavar="MANIFEST", help="Run a search again from its manifest.json, in the place of FILE."),
    ] = None,
    allow_pickle: AllowPickle = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Search: score the baselines, search, report.

    With --reproduce, first says what differs here (fatal: refused; likely to matter; harmless), and compares at last.

    Ctrl-C finishes the current evaluation, saves, and prints the command that continues; twice stops at once.
    """
    from optmerge.config.load import load_config
    from optmerge.errors import ConfigError

    changes = overrides(
        sets, limit=limit, output=output, wandb=wandb, seed=seed, budget=budget, allow_pickle=allow_pickle
    )
    if (file is None) == (reproduce is None):
        raise ConfigError(
            "Give a search file, or with --reproduce the manifest of a search that is to be run again, and not both."
        )
    if reproduce is not None:
        _reproduce(reproduce, changes, Output(json), quiet=quiet, verbose=verbose)
        return
    assert file is not None
    config = load_config(file, overrides=changes)
    from optmerge.cli.running import configure_logging, shown, watch

    configure_logging(quiet=quiet, verbose=verbose)
    from optmerge.api import search as run_search

    watch(
        lambda stop: run_search(config, root=file.parent, terminal=shown(quiet=quiet, json=json), stop=stop),
        file.parent / config.output,
        Output(json),
    )


def _reproduce(manifest: Path, changes: list[str], output: Output, *, quiet: bool, verbose: bool) -> None:
    """Run a search again, and say whether it came to the same."""
    from optmerge.api import reproduce
    from optmerge.cli.running import configure_logging, interruptible, show_result, shown

    configure_logging(quiet=quiet, verbose=verbose)
    with interruptible("optmerge resume FOLDER (the new run's)") as stop:
        made = reproduce(
            manifest,
            overrides=changes,
            terminal=shown(quiet=quiet, json=output.json),
            stop=stop,
            told=lambda found: _tell(found, output),
        )
    if output.json:
        output.facts(made)
        return
    show_result(made.run, output)
    output.say()
    output.say(made.comparison.sentence if made.comparison else "The search of the manifest had not finished.")


def _tell(found: Sequence[Mismatch], output: Output) -> None:
    if not found:
        output.note("Everything is as it was: the same numbers are expected.")
        return
    titles = {"fatal": "fatal", "likely": "likely to matter", "harmless": "harmless"}
    for mismatch in found:
        changed = "" if mismatch.was is mismatch.now is None else f": was {mismatch.was}, is {mismatch.now}"
        output.note(f"{titles[mismatch.grade]}: {mismatch.what}{changed}")
