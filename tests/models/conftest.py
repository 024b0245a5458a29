"""Tiny families, each saved once per session; read them, never write to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny import TinyFamily, save_family


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyFamily]:
    """``tiny("llama")``: the family of that kind, made at its first use."""
    made: dict[str, TinyFamily] = {}

    def family(kind: str) -> TinyFamily:
        if kind not in made:
            made[kind] = save_family(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return family


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    folder = tmp_path / "optmerge-cache"
    monkeypatch.setenv("OPTMERGE_CACHE", str(folder))
    return folder
