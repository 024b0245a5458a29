"""The site has every page, and its page of the Python API every public name; `make docs` builds it."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from typing import Any

import yaml

import optmerge
from tests.docs.pages import ROOT

API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


def entries(navigation: Any) -> Iterator[str]:
    """The files of MkDocs' ``nav``, whatever it nests them in."""
    if isinstance(navigation, str):
        yield navigation
    else:
        for part in navigation.values() if isinstance(navigation, dict) else navigation:
            yield from entries(part)


def test_every_page_is_in_the_navigation_once() -> None:
    listed = list(entries(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    docs = ROOT / "docs"
    assert sorted(listed) == sorted(path.relative_to(docs).as_posix() for path in docs.rglob("*.md"))


def test_what_the_api_page_is_made_of_is_there() -> None:
    for name in re.findall(r"^::: ([\w.]+)$", API, flags=re.MULTILINE):
        module, _, last = name.rpartition(".")
        found = getattr(importlib.import_module(module), last, None) or importlib.import_module(name)
        assert found.__doc__, f"{name} has no docstring"


def test_every_public_name_is_on_the_api_page() -> None:
    shown = set(re.findall(r"^::: [\w.]*?(\w+)$", API, flags=re.MULTILINE))
    errors = {name for name in optmerge.__all__ if getattr(optmerge, name).__class__ is type} & set(
        vars(importlib.import_module("optmerge.errors"))
    )
    assert "errors" in shown
    assert set(optmerge.__all__) - errors - {"__version__"} <= shown
