"""The commands in the README exist as printed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from optmerge.cli.app import VERBS, make_app
from optmerge.config.load import build_config
from optmerge.config.reading import read_yaml

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def commands() -> Iterator[list[str]]:
    for text in (README, (ROOT / "CONTRIBUTING.md").read_text()):
        for block in blocks("console", text):
            for line in block.splitlines():
                assert line.startswith("$ "), line
                yield shlex.split(line[2:])


def test_there_are_commands() -> None:
    assert sum(command[0] == "optmerge" for command in commands()) >= 8


@pytest.mark.parametrize("command", [c for c in commands() if c[0] == "optmerge"], ids=" ".join)
def test_optmerge_commands_parse(command: list[str]) -> None:
    verb, *arguments = command[1:]
    group = typer.main.get_command(make_app())
    # Parsing alone: a misspelt verb, option or missing argument raises.
    group.commands[verb].make_context(verb, arguments)  # type: ignore[attr-defined]


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = {command[1] for command in commands() if command[0] == "make"} | set(re.findall(r"`make ([\w-]+)`", README))
    assert {"demo", "test"} <= named
    benches = re.search(r"^BENCHES := (.+)$", makefile, flags=re.MULTILINE)
    assert benches
    made = set(re.findall(r"^([\w-]+):", makefile, flags=re.MULTILINE)) | {f"bench-{b}" for b in benches[1].split()}
    assert named <= made


def test_every_verb_is_in_the_table() -> None:
    assert re.findall(r"^\| `([a-z]+)[ `]", README, flags=re.MULTILINE) == list(VERBS)


def test_the_search_file_is_valid() -> None:
    (text,) = blocks("yaml")
    config = build_config(read_yaml(text, source="README.md"), root=ROOT)
    assert list(config.experts) == ["sentiment", "topic"]


def test_python_compiles_and_uses_public_names() -> None:
    import optmerge

    (code,) = blocks("python")
    compile(code, "README.md", "exec")
    assert set(re.findall(r"optmerge\.(\w+)\(", code)) <= set(optmerge.__all__)


@pytest.mark.parametrize("name", re.findall(r"\]\(([\w/.-]+)\)", README))
def test_links_lead_somewhere(name: str) -> None:
    assert (ROOT / name).exists()
