"""How the pages' commands are run, and what is done in the place of those that cannot be.

A command of ``optmerge`` runs in this process. What needs a network, an account, a server or minutes is listed in
`INSTEAD` with the reason, and something else is checked. A program that is not known here is an error.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from typing import Any

import typer.main

from optmerge.cli.app import make_app
from tests.cli.conftest import Run
from tests.docs.pages import ROOT, Command

PARSE = None

# The beginning of a command -> why it is not run as it stands, and what is added so that it can be (PARSE: nothing
# helps; its options and arguments are parsed).
INSTEAD: dict[str, tuple[str, tuple[str, ...] | None]] = {
    "optmerge push": ("needs an account of the Hugging Face Hub", ("--dry-run",)),
    "optmerge sync": ("needs a server of Weights & Biases", ("--mode", "offline")),
    "optmerge dashboard": ("serves until it is stopped", PARSE),
    "optmerge --install-completion": ("writes into the shell's own files", PARSE),
    "optmerge demo": ("downloads 131 MB and takes minutes", PARSE),
    "PGPASSWORD=... optmerge search": ("needs a PostgreSQL server; `make test-postgres` has one", PARSE),
}

# What stands for a value in a synopsis -> such a value, where not everything will do.
PLACEHOLDERS = {"N": "2", "bench-NAME": "bench-startup"}


def run_command(command: Command, run: Run) -> str:
    """Run a command in the working directory, or what stands for it; returns what it printed.

    Raises:
        AssertionError: It failed, or nothing is known about such a command.
    """
    program, *arguments = command.words
    if program == "optmerge":
        _, added = next((found for start, found in INSTEAD.items() if str(command).startswith(start)), ("", ()))
        if added is PARSE:
            parse_optmerge(arguments)
            return ""
        result = run(*arguments, *(word for word in added if word not in arguments))
        assert result.code == 0, f"$ {command}\n{result.out}{result.err}"
        return result.out
    if program == "python" and arguments[0].endswith(".py"):
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
        return done.stdout
    check_command(command)
    return ""


def check_command(command: Command) -> None:
    """Whether a command would be understood, without running it.

    Raises:
        AssertionError: It would not, or nothing is known about such a command.
    """
    program, *arguments = (PLACEHOLDERS.get(word, word) for word in command.words)
    assert program in _CHECKS, f"$ {command}: nothing here runs or checks {program}; say how in {__name__}"
    _CHECKS[program](arguments)


def parse_optmerge(arguments: list[str]) -> None:
    """Parse alone: a misspelt verb or option raises, and so does a missing argument where options are given."""
    group: Any = typer.main.get_command(make_app())
    if arguments[0].startswith("-"):
        assert arguments[0] in {name for parameter in group.params for name in parameter.opts} | {"--help"}, arguments
        return
    verb, *rest = arguments
    assert verb in {*group.commands, "VERB"}, f"optmerge has no verb {verb}"
    if rest and verb != "VERB":
        group.commands[verb].make_context(verb, rest)


def _make(arguments: list[str]) -> None:
    """The targets are there. (`make -n` would run the lines that call make again.)"""
    makefile = (ROOT / "Makefile").read_text()
    benches = re.search(r"^BENCHES := (.+)$", makefile, flags=re.MULTILINE)
    assert benches
    targets = set(re.findall(r"^([\w-]+):", makefile, flags=re.MULTILINE)) | {f"bench-{b}" for b in benches[1].split()}
    named = {word for word in arguments if "=" not in word}
    assert named <= targets, f"make {' '.join(arguments)}: no target {named - targets}"


def _pip(arguments: list[str]) -> None:
    """Extras exist, and so do files; what else is installed is somebody else's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    verb, *rest = arguments
    assert verb in ("install", "freeze"), arguments
    for word in rest:
        for extra in re.findall(r"\[([\w,-]+)\]", word):
            assert set(extra.split(",")) <= set(project["optional-dependencies"]), f"pip install {word}"
        if word.endswith(".txt"):
            assert (ROOT / word).exists(), f"pip install {word}"


def _python(arguments: list[str]) -> None:
    """The module is there."""
    assert arguments[0] == "-m", arguments
    path = ROOT.joinpath(*arguments[1].split("."))
    assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), f"python -m {arguments[1]}"


def _wandb(arguments: list[str]) -> None:
    """W&B's own command line parses it."""
    from wandb.cli.cli import cli

    verb, *rest = arguments
    if verb != "login" or rest:
        cli.commands[verb].make_context(verb, rest)


def _other(arguments: list[str]) -> None:
    """A command of another project that a page mentions."""


_CHECKS: dict[str, Callable[[list[str]], None]] = {
    "optmerge": parse_optmerge,
    "make": _make,
    "pip": _pip,
    "python": _python,
    "wandb": _wandb,
    "hf": _other,
    "trackio": _other,
    "mergekit-yaml": _other,
    "mergekit-evolve": _other,
}


def first_word(line: str) -> str:
    """What a line of output begins with, numbers aside."""
    return re.sub(r"\d+", "0", line.split()[0])


def run_python(code: str, name: str) -> None:
    """Run a page's Python as a script in the working directory."""
    exec(compile(code, name, "exec"), {"__name__": "__main__"})
