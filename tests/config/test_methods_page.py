"""The methods page says what the methods declare."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from optmerge.config.methods import METHOD_CONFIGS, Need
from optmerge.config.methods_page import BEGIN, NEED_WORDS, method_row, method_rows, methods_table, renewed

PAGE = Path(__file__).resolve().parents[2] / "docs" / "methods.md"


def test_page_is_up_to_date() -> None:
    page = PAGE.read_text()
    assert page == renewed(page), "run: python -m optmerge.config.methods_page docs/methods.md"


def test_every_method_has_a_row() -> None:
    assert [row.name for row in method_rows()] == list(METHOD_CONFIGS)
    table = methods_table()
    assert all(f"| `{name}` |" in table for name in METHOD_CONFIGS)
    assert len({line.count(" | ") for line in table.splitlines() if "\\|" not in line and ":--" not in line}) == 1


def test_every_need_has_a_word() -> None:
    assert set(get_args(Need)) <= set(NEED_WORDS)
    assert set(NEED_WORDS.values()) <= {"inputs", "gradients"}


def test_a_row_says_what_is_searched_and_how_many_experts() -> None:
    slerp = method_row(METHOD_CONFIGS["slerp"])
    assert slerp.listed_needs == "weights; 1 to 2 experts"
    assert slerp.listed_settings() == "t*=0.5, compat=paper"
    assert method_row(METHOD_CONFIGS["regmean"]).needs == ("weights", "inputs")


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a line"):
        renewed(f"text\n{BEGIN}\n")
