"""The reference page of the command line, made from the verbs themselves.

    python -m optmerge.cli.reference > docs/cli.md

What a verb's ``--help`` says is what stands there. A test holds the page and the verbs equal.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import typer.main

from optmerge.cli.app import EPILOG, make_app

if TYPE_CHECKING:
    from collections.abc import Iterable

OPENING = """\
# The command line

`optmerge VERB --help` says the same in a terminal. Facts go to stdout, progress and errors to stderr; `--json` prints
the facts as JSON. Exit codes: 0 done, 2 a mistake that you can mend, 3 the run failed, 130 interrupted with the state
saved.
"""

HELP = "--help"  # every verb has it


def page() -> str:
    """The Markdown of ``docs/cli.md``."""
    group: Any = typer.main.get_command(make_app())
    parts = [OPENING, *_prose(EPILOG), _options(group.params)]
    for name, command in group.commands.items():
        if not command.hidden:
            parts += [f"## {name}\n", _usage(name, command), *_prose(command.help or ""), *_tables(command)]
            parts += _prose(command.epilog or "")
    return "\n".join(part for part in parts if part)


def _usage(name: str, command: Any) -> str:
    words = ["optmerge", name]
    for parameter in _shown(command.params):
        if _is_argument(parameter):
            words.append(_metavar(parameter) if parameter.required else f"[{_metavar(parameter)}]")
        elif parameter.required:
            words.append(_spelled(parameter))
    words.append("[OPTIONS]")
    return f"```text\n{' '.join(words)}\n```\n"


def _prose(text: str) -> Iterable[str]:
    """Paragraphs as Markdown; those that help prints line by line are code."""
    for paragraph in filter(None, text.strip().split("\n\n")):
        lines = paragraph.splitlines()
        if lines[0].strip() == "\b":
            yield "```text\n" + "\n".join(line.strip() for line in lines[1:]) + "\n```\n"
        else:
            yield _escaped(" ".join(line.strip() for line in lines)) + "\n"


def _tables(command: Any) -> Iterable[str]:
    arguments = [parameter for parameter in _shown(command.params) if _is_argument(parameter)]
    if arguments:
        rows = [f"| `{_metavar(each)}` | {_escaped(each.help or '')} |" for each in arguments]
        yield "\n".join(["| argument | |", "| :-- | :-- |", *rows, ""])
    yield _options(command.params)


def _options(parameters: Iterable[Any]) -> str:
    rows = [
        f"| `{_spelled(each)}` | {_default(each)} | {_escaped(each.help or '')} |"
        for each in _shown(parameters)
        if not _is_argument(each)
    ]
    return "\n".join(["| option | default | |", "| :-- | :-- | :-- |", *rows, ""]) if rows else ""


def _shown(parameters: Iterable[Any]) -> list[Any]:
    return [each for each in parameters if not getattr(each, "hidden", False) and HELP not in each.opts]


def _is_argument(parameter: Any) -> bool:
    return not any(name.startswith("-") for name in parameter.opts)


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _spelled(parameter: Any) -> str:
    """``--output, -o DIR``: the long name first."""
    names = sorted([*parameter.opts, *parameter.secondary_opts], key=len, reverse=True)
    return ", ".join(names) + ("" if parameter.is_flag else f" {_metavar(parameter)}")


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    return "" if value is None or value is False or value == [] or callable(value) else f"`{value}`"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


if __name__ == "__main__":
    sys.stdout.write(page())
