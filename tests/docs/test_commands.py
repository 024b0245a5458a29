"""Every command of the README and of the documentation does what its page says, in the order of the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.docs.pages import Command, pages, read_page
from tests.docs.running import check_command, first_word, run_command, run_python
from tests.docs.world import CHANGES, STARTS, World

# Pages whose output is that of real models, which are not here.
REAL = ("docs/explain.md",)

WITH_COMMANDS = [name for name in pages() if read_page(name).runs]


def test_the_tables_are_about_pages_that_there_are() -> None:
    assert {*STARTS, *CHANGES, *REAL} <= set(pages())
    assert len(WITH_COMMANDS) >= 10


@pytest.mark.parametrize("name", WITH_COMMANDS)
def test_every_command_runs(name: str, world: World, run: Run, folder: Path) -> None:
    assert name in STARTS, f"{name} has commands; say in tests/docs/world.py what is there before the first one"
    world.begin(STARTS[name], folder)
    for step in read_page(name, CHANGES.get(name)).steps:
        if isinstance(step, Command):
            printed = run_command(step, run)
            if name not in REAL:
                for line in step.shown:
                    begins = {first_word(each) for each in printed.splitlines() if each.strip()}
                    assert first_word(line) in begins | {"..."}, f"{name}:{step.line} does not print {line!r}"
        elif step.file is not None:
            Path(step.file).parent.mkdir(parents=True, exist_ok=True)
            Path(step.file).write_text(step.text)
        elif step.language == "python":
            run_python(step.text, f"{name}:{step.line}")


@pytest.mark.parametrize("name", pages())
def test_commands_in_sentences_are_understood(name: str) -> None:
    for command in read_page(name).inline:
        try:
            check_command(command)
        except Exception as error:
            # A sentence may leave out what it is not about.
            if type(error).__name__ not in ("MissingParameter", "BadOptionUsage"):
                pytest.fail(f"{name}:{command.line}: `{command}`: {error}")


def test_an_unknown_program_is_an_error(run: Run) -> None:
    with pytest.raises(AssertionError, match="nothing here runs or checks curl"):
        run_command(Command(("curl", "https://example.org"), 1), run)


@pytest.mark.parametrize("words", [("optmerge", "serach", "a.yaml"), ("make", "tset"), ("pip", "install", ".[pfet]")])
def test_a_misspelt_command_is_an_error(words: tuple[str, ...]) -> None:
    with pytest.raises(AssertionError):
        check_command(Command(words, 1))
