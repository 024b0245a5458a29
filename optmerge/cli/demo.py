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
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the runs; continued if it has some.")
    ] = Path("runs/demo"),
    json: Json = False,
) -> None:
    """Fine-tune real experts, search, compare, export.

    Needs no GPU and no account; it downloads 131 MB once. Finished steps are not repeated when it is started again.
    """
    from optmerge.cli.running import configure_logging, interruptible
    from optmerge.demo import run_demo

    configure_logging()
    printed = Output(json)
    again = f"optmerge demo{' --quick' if quick else ''} --output {shlex.quote(str(output))}"
    with interruptible(again) as stop:
        result = run_demo(output, quick=quick, say=printed.note if json else printed.say, stop=stop)
    printed.facts(result)
