"""Zoos small enough to search in seconds: tiny models made from one base, and texts for each expert."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import LABELS, save_family, sentences


def make_zoo(folder: Path, kind: str) -> Path:
    """base/, one/, two/ and one.jsonl, two.jsonl below ``folder``; experts far enough apart to disagree."""
    save_family(kind, folder, scale=0.3)
    for number, (name, classes) in enumerate(LABELS.items()):
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as handle:
            for text in sentences(90, seed=number):
                handle.write(json.dumps({"text": text, "label": f"LABEL_{len(text) % classes}"}) + "\n")
    return folder


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BERT classifiers with heads of their own."""
    return make_zoo(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="session")
def language_zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Causal language models with tied embeddings."""
    return make_zoo(tmp_path_factory.mktemp("llama"), "llama-tied")


def zoo_settings(zoo: Path, **changes: Any) -> dict[str, Any]:
    """A search file's content over a zoo; keyword arguments replace keys."""
    return {
        "base": str(zoo / "base"),
        "experts": {"a": str(zoo / "one"), "b": str(zoo / "two")},
        "tasks": {
            "a": {"expert": "a", "data": str(zoo / "one.jsonl"), "label": "label"},
            "b": {"expert": "b", "data": str(zoo / "two.jsonl"), "label": "label"},
        },
        "space": {"granularity": "layer-wise"},
        "objective": {"terms": [{"name": "expert-kl"}]},
        "driver": {"name": "adam", "lr": 0.05},
        "splits": {"fit": 24, "select": 16, "report": 30},
        "baselines": {"grid": [0.3, 0.6], "method_grid": [1.0]},
        "budget": {"evaluations": 8},
        "device": "cpu",
        "output": "run",
    } | changes


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
