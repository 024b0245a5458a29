"""Chunks by the objective's gradient: the measurement against its formula, the allocation, what is refused, resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optmerge.config.load import build_config
from optmerge.errors import ConfigError, RunInterrupted
from optmerge.models.cache import cache_dir
from optmerge.runner.evaluator import Evaluator
from optmerge.runner.fisher import SLICES, fisher_profile
from optmerge.runner.problem import Problem, open_problem
from optmerge.runner.references import absolute_references
from optmerge.runner.search import resume, search
from optmerge.runner.teachers import Teachers
from tests.zoo import facts

Settings = Callable[..., dict[str, Any]]
CHUNKS = {"importance": "fisher", "budget": 2.0}
SPACE = {"granularity": "chunk-wise", "chunks": CHUNKS}
QUICK: dict[str, Any] = {
    "splits": {"fit": 6, "select": 8, "report": 10},
    "budget": {"evaluations": 4},
    "baselines": {"grid": [0.3], "method_grid": [1.0], "closed_form": False},
    "objective": {"terms": [{"name": "expert-kl", "normalise": "none"}]},
}


def opened(settings: dict[str, Any], root: Path) -> Problem:
    return open_problem(absolute_references(build_config(settings, root=root), root))


def test_importance_is_the_mean_square_of_the_gradient(settings: Settings, tmp_path: Path) -> None:
    """By the coefficients of as many slices of every tensor, summed over directions; examples are parts here."""
    found = fisher_profile(build_config(settings(space=SPACE, **QUICK), root=tmp_path))
    fine = {"granularity": "chunk-wise", "chunks": {"budget": float(SLICES), "power": 0.0}, "start": 0.3}
    problem = opened(settings(space=fine, **QUICK), tmp_path)
    evaluator = Evaluator(problem, Teachers.make(problem))
    squares = np.zeros(problem.space.dimension)
    for example in range(6):
        one = {task: [example] for task in problem.calibration.tasks}
        gradient = evaluator.evaluate(problem.space.start, "fit", examples=one, gradient=True).gradient
        assert gradient is not None
        squares += gradient**2 / 6
    assert set(found) == set(problem.family.parameters)
    for group, at in zip(problem.space.groups, problem.space.rows, strict=True):
        index = problem.space.index[at]
        wanted = np.where(index >= 0, squares[index], 0.0).sum(axis=1)
        np.testing.assert_allclose(found[group.parameters[0]], wanted, rtol=1e-6)
    assert sum(map(sum, found.values())) > 0.0


def test_chunks_follow_the_profile(settings: Settings, tmp_path: Path) -> None:
    asked = settings(space=SPACE, **QUICK)
    profile = fisher_profile(build_config(asked, root=tmp_path))
    problem = opened(asked, tmp_path)
    important = sorted(problem.space.groups, key=lambda group: sum(profile[group.parameters[0]]))
    counts = [group.count for group in important]
    assert counts[-1] > counts[0] == 1
    plain = opened(asked | {"space": {"granularity": "chunk-wise", "chunks": {"budget": 2.0}}}, tmp_path)
    assert problem.space.cuts != plain.space.cuts


def test_a_worker_takes_the_chunks_that_the_search_has_measured(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its threads, on which the last bits of a gradient depend."""
    first = opened(settings(space=SPACE, **QUICK), tmp_path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 97)
    monkeypatch.setattr(
        "optmerge.runner.problem.fisher_profile", lambda *arguments: pytest.fail("it was measured again")
    )
    profiles = [stage.profile for stage in first.stages]
    assert open_problem(first.config, profiles=profiles).space.cuts == first.space.cuts


def test_a_killed_run_goes_on_with_the_same_chunks(settings: Settings, tmp_path: Path) -> None:
    """Also where the cache is gone meanwhile, so that they are measured again."""
    asked = settings(space=SPACE, **QUICK)
    whole = search(build_config(asked, root=tmp_path), root=tmp_path)
    asks = iter(range(10**6))
    config = build_config(asked | {"output": "cut"}, root=tmp_path)
    with pytest.raises(RunInterrupted):
        search(config, root=tmp_path, stop=lambda: "asked to" if next(asks) >= 7 else None)
    kept = list((cache_dir() / "fisher").iterdir())
    assert len(kept) == 1
    kept[0].unlink()
    assert facts(resume(tmp_path / "cut").folder) == facts(whole.folder)
    assert list((cache_dir() / "fisher").iterdir()) == kept


def test_an_objective_without_a_gradient_is_refused(settings: Settings, tmp_path: Path) -> None:
    asked = settings(space=SPACE, **QUICK) | {"objective": "accuracy", "driver": {"name": "cma"}}
    with pytest.raises(ConfigError, match=r"importance is fisher.*accuracy has none"):
        opened(asked, tmp_path)
