"""Every verb's help ends with an example, which the command line reads without a complaint."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
import typer.main

from optmerge.cli.app import VERBS, make_app
from optmerge.cli.examples import EXAMPLES
from tests.cli.conftest import Run


def test_every_verb_has_one() -> None:
    assert list(EXAMPLES) == list(VERBS)
    assert all(line.startswith(f"optmerge {verb}") for verb, lines in EXAMPLES.items() for line in lines)


@pytest.mark.parametrize("verb", VERBS)
def test_they_can_be_read(verb: str) -> None:
    group: Any = typer.main.get_command(make_app())
    for line in EXAMPLES[verb]:
        group.commands[verb].make_context(verb, shlex.split(line)[2:])


def test_help_shows_them(run: Run) -> None:
    assert run("export", "--help").out.endswith(
        "  Examples:\n\n"
        "    optmerge export runs/first --format checkpoint --to merged\n"
        "    optmerge export runs/first --format mergekit --to merge.yml\n"
    )
