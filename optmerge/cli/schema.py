"""``optmerge schema``: the JSON schema of search files, for editors that complete and check them."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import Annotated

import typer

from optmerge.cli.output import Output

HOW = "# yaml-language-server: $schema={path}"


def schema(
    to: Annotated[Path | None, typer.Option("--to", metavar="FILE", help="Write it there, and not to stdout.")] = None,
) -> None:
    """Print the JSON schema of search files, for your editor.

    Editors with a YAML language server complete and check a search file whose first line names the schema:
    # yaml-language-server: $schema=search.schema.json
    """
    from optmerge.atomic import atomic_write
    from optmerge.config.json_schema import search_schema
    from optmerge.errors import ConfigError

    text = json_text.dumps(search_schema(), indent=2) + "\n"
    output = Output()
    if to is None:
        output.say(text.rstrip("\n"))
        return
    if to.exists():
        raise ConfigError(f"{to} exists and is not overwritten. Choose another name, or remove it first.")
    atomic_write(to, text)
    output.say(f"Wrote {to}. First line of a search file that uses it:\n{HOW.format(path=to)}")
