"""The report as a web page: whole in itself, and the same as its Markdown."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from optmerge.tracking.page import PAGE, render_page
from optmerge.tracking.report import write_report
from optmerge.tracking.view import RunView

MOST = 3_000_000  # bytes


class _Elements(HTMLParser):
    """Every element with its attributes, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def elements(html: str, tag: str) -> list[dict[str, str | None]]:
    parser = _Elements()
    parser.feed(html)
    return [attributes for name, attributes in parser.found if name == tag]


@pytest.fixture
def page(fake) -> str:
    run = fake().baselines().search().finish()
    write_report(run.folder)
    return (run.folder / PAGE).read_text(encoding="utf-8")


def test_nothing_is_fetched_and_nothing_runs(page: str) -> None:
    assert not elements(page, "script")
    pictures = elements(page, "img")
    assert len(pictures) >= 4
    assert all(str(picture["src"]).startswith("data:image/png;base64,") and picture["alt"] for picture in pictures)
    assert all(str(link["href"]).startswith(("#", "data:")) for tag in ("a", "link") for link in elements(page, tag))
    assert "url(" not in page
    assert len(page.encode()) < MOST


def test_it_says_what_the_markdown_says(fake) -> None:
    run = fake().baselines().search().finish()
    text = write_report(run.folder).read_text(encoding="utf-8")
    page = (run.folder / PAGE).read_text(encoding="utf-8")
    sections = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
    anchors = [str(link["href"])[1:] for link in elements(page, "a")]
    assert [heading["id"] for heading in elements(page, "h2")] == anchors[: len(sections)]
    assert len(elements(page, "table")) == len(re.findall(r"^\| *:?-+", text, flags=re.MULTILINE))
    for row in RunView.open(run.folder).rows:
        assert f"{row.name}</" in page


def test_tables_have_headings_and_scroll_by_keyboard(page: str) -> None:
    assert {heading.get("scope") for heading in elements(page, "th")} == {"col", "row"}
    regions = [each for each in elements(page, "div") if each.get("class") == "wide"]
    assert len(regions) == len(elements(page, "table"))
    assert all(region["tabindex"] == "0" and region["role"] == "region" for region in regions)
    assert len({region["aria-label"] for region in regions}) > 1


def test_what_a_run_is_called_is_text(tmp_path: Path) -> None:
    page = render_page("# <b>bold</b>\n\n[x](javascript:alert(1))\n", title="<script>1</script>", folder=tmp_path)
    assert not elements(page, "script")
    assert not elements(page, "b")
    assert not elements(page, "a")


def test_a_picture_that_is_not_there_stays_a_name(tmp_path: Path) -> None:
    page = render_page("# run\n\n![missing](missing.png)\n", title="run", folder=tmp_path)
    assert elements(page, "img") == [{"src": "missing.png", "alt": "missing"}]


def test_a_run_that_has_only_begun_has_a_page(fake) -> None:
    run = fake()
    write_report(run.folder)
    assert elements((run.folder / PAGE).read_text(encoding="utf-8"), "h1")
