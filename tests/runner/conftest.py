"""Tiny zoos, made once, and search files over them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.zoo import make_zoo, zoo_settings


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BERT classifiers with heads of their own."""
    return make_zoo(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="session")
def language_zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Causal language models with tied embeddings."""
    return make_zoo(tmp_path_factory.mktemp("llama"), "llama-tied")


@pytest.fixture
def settings(zoo: Path) -> Callable[..., dict[str, Any]]:
    """`zoo_settings` over the classifiers."""
    return lambda **changes: zoo_settings(zoo, **changes)


@pytest.fixture
def language_settings(language_zoo: Path) -> Callable[..., dict[str, Any]]:
    """`zoo_settings` over the language models; their data has no label column."""

    def make(**changes: Any) -> dict[str, Any]:
        made = zoo_settings(language_zoo, **changes)
        for task in made["tasks"].values():
            del task["label"]
        return made

    return make


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests never touch the user's cache."""
    monkeypatch.setenv("OPTMERGE_CACHE", str(tmp_path_factory.mktemp("cache")))
