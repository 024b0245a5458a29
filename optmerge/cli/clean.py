"""``optmerge clean``: what is cached, and with ``--yes`` no longer."""

from __future__ import annotations

from typing import Annotated

import typer

from optmerge.cli.options import Json
from optmerge.cli.output import Output, size


def clean(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete it; without this, only show it.")] = False,
    json: Json = False,
) -> None:
    """Show the caches with their sizes, delete them with --yes.

    Only what can be made or fetched again is cached; runs and your own models are never touched.
    """
    from optmerge.models.cache import cache_dir, cache_entries

    entries = cache_entries()
    total = sum(entry.nbytes for entry in entries)
    output = Output(json)
    output.facts({"folder": cache_dir(), "entries": entries, "nbytes": total, "deleted": yes})
    if not entries:
        output.say(f"Nothing is cached in {cache_dir()}.")
        return
    rows = [[entry.name, entry.files, size(entry.nbytes)] for entry in entries]
    output.table([f"in {cache_dir()}", "files", "size"], [*rows, ["all", "", size(total)]], right=["files", "size"])
    if yes:
        for entry in entries:
            entry.remove()
        output.say(f"\nDeleted {size(total)}.")
    else:
        output.say("\nDelete it with: optmerge clean --yes")
