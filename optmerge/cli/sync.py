"""``optmerge sync RUN``: send a whole run to Weights & Biases from its trajectory."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from optmerge.cli.options import Json, RunFolder
from optmerge.cli.output import Output


class Mode(StrEnum):
    """Where W&B logs go."""

    ONLINE = "online"
    OFFLINE = "offline"


def sync(
    run: RunFolder,
    project: Annotated[
        str | None, typer.Option(metavar="NAME", help="W&B project; that of the search file if not given.")
    ] = None,
    entity: Annotated[str | None, typer.Option(metavar="NAME", help="W&B team or user.")] = None,
    mode: Annotated[Mode, typer.Option(help="offline writes what `wandb sync` sends later.")] = Mode.ONLINE,
    json: Json = False,
) -> None:
    """Send a run to Weights & Biases, whole.

    From its trajectory, to any project. What the project has already is completed; nothing is there twice.
    """
    from optmerge.cli.running import configure_logging

    configure_logging()
    from optmerge.tracking.sync import sync_run

    sent = sync_run(run, project=project, entity=entity, mode=mode.value)
    output = Output(json)
    output.facts(sent)
    if sent.folder is not None:
        output.say(f"{sent.records} evaluations are in {sent.folder}. Send them with: wandb sync {sent.folder}")
    else:
        output.say(f"{sent.sent} evaluations were sent, {sent.records} are there: {sent.url}")
