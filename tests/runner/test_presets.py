"""Whole searches by every objective preset, and by terms that are in none, on tiny models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optmerge.config.load import build_config
from optmerge.errors import ConfigError
from optmerge.presets import preset_names
from optmerge.records import Record, Trajectory
from optmerge.runner.problem import open_problem
from optmerge.runner.search import search

Settings = Callable[..., dict[str, Any]]

CMA = {"name": "cma", "population": 4}
PRESETS = [name for name in preset_names("objective") if not name.startswith("lm-eval")]  # tests of their own
QUICK = {"budget": {"evaluations": 4}, "limit": 8, "baselines": {"grid": [0.3], "method_grid": [1.0]}}


def fitted(settings: dict[str, Any], root: Path) -> list[Record]:
    """The records of what a search tried, which must have an end and no failure."""
    made = search(build_config(settings, root=root), root=root)
    assert made.recipe is not None
    records = Trajectory.read(made.folder).records
    assert all(record.error is None for record in records)
    return [record for record in records if record.phase == "search"]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_search_by_every_preset(settings: Settings, tmp_path: Path, preset: str) -> None:
    follows = preset != "accuracy"
    driver = {"name": "adam", "lr": 0.05} if follows else CMA
    records = fitted(settings(objective=preset, driver=driver, **QUICK), tmp_path)
    assert len(records) == 4
    for record in records:
        assert record.value is not None
        assert (record.gradient is not None and bool(np.any(record.gradient != 0))) == follows


@pytest.mark.parametrize("term", ["jensen-shannon", "agreement", "f1", "exact-match"])
def test_a_search_by_terms_that_no_preset_has(settings: Settings, tmp_path: Path, term: str) -> None:
    terms = [{"name": term}, {"name": "overlap", "weight": 0.01}]
    records = fitted(settings(objective={"terms": terms}, driver=CMA, **QUICK), tmp_path)
    for record in records:
        assert all(-1e-6 <= metrics[term] <= 1.0 for metrics in record.metrics.values())
    assert max(record.parts["overlap"] for record in records) > 0.0


@pytest.mark.parametrize(("term", "why"), [("smoothness", "in three layers"), ("similarity", "no two of the 1")])
def test_a_regulariser_without_an_object_is_refused_before_anything_runs(
    settings: Settings, tmp_path: Path, term: str, why: str
) -> None:
    """The tiny models have two layers; with one expert there is one direction."""
    made = settings(objective={"terms": [{"name": "entropy"}, {"name": term}]})
    if term == "similarity":
        made["experts"], made["tasks"] = {"a": made["experts"]["a"]}, {"a": made["tasks"]["a"]}
    with pytest.raises(ConfigError, match=why):
        open_problem(build_config(made, root=tmp_path))
