"""Finished searches in a leaderboard: what they needed. That others are refused is in test_leaderboard.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optmerge.config.load import build_config
from optmerge.runner.finished import needs_of_search


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ({}, False),
        ({"directions": ["experts", "fisher"]}, False),
        ({"objective": "cross-entropy"}, True),
        ({"method": "led"}, True),
        ({"directions": ["experts", "sens"]}, True),
        ({"methods": ["task_arithmetic", "led"]}, True),
        ({"directions": ["experts", {"name": "one-of", "methods": ["iso-c", "sens"]}]}, True),
    ],
)
def test_labels_are_needed_by_terms_and_by_methods(changes: dict[str, Any], labels: bool) -> None:
    search = {
        "base": "base",
        "experts": {"law": "law", "code": "code"},
        "tasks": {name: {"expert": name, "data": f"{name}.jsonl", "label": "label"} for name in ("law", "code")},
        "objective": "expert-kl",
        "driver": "cma",
    }
    config = build_config(search | changes, root=Path())
    assert needs_of_search(config) == ("weights", "inputs", *(["labels"] if labels else []))
