"""A search as plain data."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def data() -> dict[str, Any]:
    """A small valid search, as a search file would hold it."""
    return {
        "version": 1,
        "base": "zoo/base",
        "experts": {"sentiment": "zoo/sentiment", "topic": "zoo/topic"},
        "tasks": {
            "sentiment": {"expert": "sentiment", "data": "sentiment.jsonl", "label": "label"},
            "topic": {"expert": "topic", "data": "topic.jsonl", "label": "label"},
        },
        "space": "tensor-wise",
        "objective": "expert-kl",
        "driver": {"name": "adam", "lr": 0.05},
    }
