"""The page of the command line says what the verbs say."""

from __future__ import annotations

from pathlib import Path

from optmerge.cli.app import VERBS
from optmerge.cli.reference import page

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"


def test_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run: python -m optmerge.cli.reference > docs/cli.md"


def test_every_verb_and_what_it_needs_is_there() -> None:
    text = page()
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == list(VERBS)
    assert "optmerge export RUN --format, -f FORMAT --to PATH [OPTIONS]" in text
    assert "| `--set KEY=VALUE` |" in text
    assert "--help` |" not in text
