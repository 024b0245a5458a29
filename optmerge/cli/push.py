"""``optmerge push FOLDER REPO_ID``: an exported checkpoint to the Hugging Face Hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from optmerge.cli.options import Json
from optmerge.cli.output import Output, size


def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="An exported checkpoint.", show_default=False)],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="NAMESPACE/NAME on the Hub.", show_default=False)],
    public: Annotated[bool, typer.Option("--public", help="Let everybody see it; private if not given.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show every file and what would be created, and touch nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: Json = False,
) -> None:
    """Upload an exported checkpoint to the Hugging Face Hub.

    It is private unless told otherwise. For example: optmerge push merged me/merged --dry-run
    """
    from optmerge.errors import ConfigError
    from optmerge.export.push import plan_push, require_token
    from optmerge.export.push import push as upload

    plan = plan_push(folder, repo_id, public=public)
    output = Output(json)
    rows = [[name, size(nbytes)] for name, nbytes in plan.files.items()]
    output.table([f"in {folder}", "size"], [*rows, ["all", size(plan.nbytes)]], right=["size"])
    visible = "public" if public else "private"
    output.say(f"\nGoes to {plan.url} ({visible}; the repository is created if there is none).")
    for note in plan.notes:
        output.note(note)
    facts = {
        "repo_id": repo_id,
        "url": plan.url,
        "public": public,
        "files": plan.files,
        "nbytes": plan.nbytes,
        "notes": plan.notes,
        "pushed": not dry_run,
    }
    if dry_run:
        output.facts(facts)
        output.say("Nothing was created or uploaded.")
        return
    require_token()
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError(
                "push asks before it uploads, and there is no terminal to ask on. Give --yes, or --dry-run."
            )
        if not typer.confirm(f"Upload {len(plan.files)} files to {repo_id} ({visible})?", err=True):
            output.note("Nothing was created or uploaded.")
            raise typer.Exit(130)
    upload(plan)
    output.facts(facts)
    output.say(f"Pushed to {plan.url}")
