"""Links and tables of the pages lead to what there is."""

from __future__ import annotations

import re

import pytest

from optmerge.cli.app import VERBS
from tests.docs.pages import ROOT, pages

LINK = re.compile(r"\]\(([^)\s#]*)(?:#([\w-]+))?\)")
VERBS_PAGE = "docs/verbs.md"


def anchors(text: str) -> set[str]:
    """The names that headings get on GitHub and in MkDocs."""
    heads = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", head)).strip().lower().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", pages())
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        found = page.parent / target if target else page
        assert found.exists(), f"{name} links to {target}"
        if anchor:
            assert anchor in anchors(found.read_text(encoding="utf-8")), f"{name} links to {target}#{anchor}"


def test_every_verb_is_in_the_table() -> None:
    text = (ROOT / VERBS_PAGE).read_text(encoding="utf-8")
    assert re.findall(r"^\| `([a-z]+)[ `]", text, flags=re.MULTILINE) == list(VERBS)
