"""The report's page in a real browser, on a phone and on a desk, in light and in dark; `make test-browser`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.browser

PHONE, DESK = {"width": 390, "height": 844}, {"width": 1440, "height": 1000}
PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def report() -> Path:
    """The page of a demo's search."""
    named = os.environ.get("OPTMERGE_REPORT")
    if not named:
        pytest.skip("$OPTMERGE_REPORT does not name a report.html; run `make test-browser`")
    return Path(named).absolute()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("chromium-browser")
    assert program, "there is no chromium on this machine; `make test-browser` installs Debian's"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(params=[("phone", PHONE), ("desk", DESK)], ids=["phone", "desk"])
def size(request: pytest.FixtureRequest) -> tuple[str, dict[str, int]]:
    return request.param


@pytest.fixture(params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def page(browser: Any, report: Path, size: tuple[str, dict[str, int]], scheme: str) -> Iterator[Any]:
    context = browser.new_context(viewport=size[1], color_scheme=scheme, bypass_csp=False)
    opened = context.new_page()
    opened.said, opened.asked = [], []
    opened.on("console", lambda message: opened.said.append(message.text))
    opened.on("pageerror", lambda error: opened.said.append(str(error)))
    opened.on("request", lambda request: opened.asked.append(request.url))
    opened.goto(report.as_uri())
    yield opened
    context.close()


def test_it_is_all_there(page: Any, report: Path) -> None:
    assert page.locator("h1").count() == 1
    assert page.locator("table").count() >= 4
    headings = page.locator("h2").all_inner_texts()
    for wanted in ("Results", "Trajectory", "What was searched", "Data", "Cost", "How to go on"):
        assert wanted in headings
    assert page.locator("img").count() >= 3
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 100)")
    for link in page.locator("nav a").all():
        assert page.locator(link.get_attribute("href")).count() == 1
    assert report.stat().st_size < 3_000_000


def test_it_never_scrolls_sideways_and_asks_nobody(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    assert page.said == []
    assert [url for url in page.asked if not url.startswith(("file:", "data:"))] == []


def test_it_says_the_same_without_scripts(browser: Any, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    plain = context.new_page()
    plain.goto(report.as_uri())
    assert plain.locator("table").count() >= 4
    context.close()


def test_axe_finds_nothing_serious(browser: Any, report: Path, size: tuple[str, dict[str, int]], scheme: str) -> None:
    axe = Path(os.environ["OPTMERGE_AXE"]).read_text(encoding="utf-8")
    context = browser.new_context(viewport=size[1], color_scheme=scheme, bypass_csp=True)  # axe is a script
    opened = context.new_page()
    opened.goto(report.as_uri())
    opened.evaluate(axe)
    found = opened.evaluate("axe.run()")
    context.close()
    assert found["passes"], "axe ran no rule"
    told = [
        {"rule": each["id"], "nodes": [node["html"][:200] for node in each["nodes"][:3]]}
        for each in found["violations"]
        if each["impact"] in SERIOUS
    ]
    assert not told, json.dumps(told, indent=2)


def test_pictures_for_the_documentation(page: Any, size: tuple[str, dict[str, int]], scheme: str) -> None:
    target = PICTURES / f"report-{size[0]}-{scheme}.png"
    target.parent.mkdir(exist_ok=True)
    page.screenshot(path=str(target))
    assert target.stat().st_size > 10_000
