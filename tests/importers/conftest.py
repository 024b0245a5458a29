"""Tiny Llamas of four layers that the configurations of these tests name by their folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import save_family


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zoo")
    save_family("llama", folder, experts=("one", "two", "three"), num_hidden_layers=4)
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTMERGE_CACHE", str(tmp_path / "cache"))
