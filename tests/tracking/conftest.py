"""Fake runs for the views."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tracking.fake_run import FakeRun


@pytest.fixture
def fake(tmp_path: Path) -> Callable[..., FakeRun]:
    """Makes small fake runs: two tasks and two layers unless told otherwise."""

    def make(name: str = "first", **options: object) -> FakeRun:
        return FakeRun(tmp_path / name, **({"layers": 2, "tasks": ("sentiment", "author")} | options)).begin()  # type: ignore[arg-type]

    return make
