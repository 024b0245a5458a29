"""``optmerge schema``: the JSON schema of search files, for editors that complete and check them."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import Annotated

import typer

from optmerge.cli.options import Json
from optmerge.cli.output import Output

HOW = "# yaml-language-server: $schema={path}"


def schema(
    to: Annotated[Path | None, typer.Option("--to", metavar="FILE", help="Write it there, and not to stdout.")] = None,
    json: Json = False,
) -> None:
    """Print the JSON schema of search files, for your editor.

    Editors with a YAML language server complete and check a search file whose first line names the schema:
    # yaml-language-server: $schema=search.schema.json
    """
    from optmerge.atomic import atomic_write
    from optmerge.config.json_schema import search_schema
    from optmerge.errors import ConfigError

    described = search_schema()
    text = json_text.dumps(described, indent=2) + "\n"
    output = Output(json)
    if to is not None and to.exists():
        raise ConfigError(f"{to} exists and is not overwritten. Choose another name, or remove it first.")
    output.facts(described if to is None else {"file": to})
    if to is None:
        output.say(text.rstrip("\n"))
        return
    atomic_write(to, text)
    output.say(f"Wrote {to}. First line of a search file that uses it:\n{HOW.format(path=to)}")
