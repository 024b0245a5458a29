"""The reference page says what the schema says."""

from __future__ import annotations

from pathlib import Path

from optmerge.config.reference import page

PAGE = Path(__file__).resolve().parents[2] / "docs" / "search-file.md"


def test_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "run: python -m optmerge.config.reference > docs/search-file.md"
