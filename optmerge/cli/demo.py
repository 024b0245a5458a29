"""``optmerge demo``: the whole way on real models."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from optmerge.cli.options import Json
from optmerge.cli.output import Output


def demo(
    quick: Annotated[bool, typer.Option("--quick", help="Two tasks and fewer steps, in under two minutes.")] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder for the runs, continued if it has some; runs/demo, or runs/demo-quick, when not given.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Fine-tune real experts, search, compare, export.

    Needs no GPU and no account; it downloads 131 MB once. Finished steps are not repeated when it is started again.
    """
    from optmerge.cli.running import configure_logging, interruptible
    from optmerge.demo import run_demo

    configure_logging()
    printed = Output(json)
    folder = output or Path("runs/demo-quick" if quick else "runs/demo")
    again = f"optmerge demo{' --quick' if quick else ''} --output {shlex.quote(str(folder))}"
    with interruptible(again) as stop:
        result = run_demo(folder, quick=quick, say=printed.note if json else printed.say, stop=stop)
    printed.facts(result)
