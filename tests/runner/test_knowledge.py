from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optmerge.config.load import build_config
from optmerge.config.spaces import SpaceConfig
from optmerge.merging.products import delta_norms
from optmerge.records import Trajectory
from optmerge.runner.knowledge import known_vectors, make_variables, variable_norms
from optmerge.runner.problem import open_problem
from optmerge.runner.search import search
from optmerge.space.build import build_space
from optmerge.space.space import SearchSpace
from tests.space.test_space import ROLES

Settings = Callable[..., dict[str, Any]]


def space(granularity: str) -> SearchSpace:
    return build_space(SpaceConfig.model_validate({"granularity": granularity}), ROLES, ["a", "b"])


def test_a_variable_has_the_norm_of_all_that_it_scales() -> None:
    made = space("tensor-wise")
    norms = np.random.default_rng(0).uniform(1, 2, made.frozen.shape)
    assert variable_norms(made, norms) == pytest.approx(norms[made.index >= 0][np.argsort(made.index[made.index >= 0])])
    whole = space("model-wise")
    norms = np.random.default_rng(0).uniform(1, 2, whole.frozen.shape)
    assert variable_norms(whole, norms) == pytest.approx([np.linalg.norm(norms)])


def test_known_vectors_are_the_best_that_differ() -> None:
    made = space("task-wise")
    tables = [np.full(made.frozen.shape, value) for value in (0.3, 0.5, 0.5, 0.2, 0.4)]
    known = known_vectors(made, made.encode(tables[0]), tables, 2)
    assert [vector.tolist() for vector in known] == [[0.5, 0.5], [0.2, 0.2]]
    assert known_vectors(made, made.start, tables, 0) == []


def test_norms_are_measured_for_those_who_ask(settings: Settings, tmp_path: Path) -> None:
    problem = open_problem(build_config(settings(driver={"name": "cma", "scale": "norms"}), root=tmp_path))
    variables = make_variables(problem, problem.space.start, [])
    expected = variable_norms(problem.space, delta_norms(problem.engine, problem.columns))
    assert variables.norms is not None
    assert variables.norms.tobytes() == expected.tobytes()
    assert (expected > 0).all()
    problem = open_problem(build_config(settings(driver="cma"), root=tmp_path))
    assert make_variables(problem, problem.space.start, []).norms is None


@pytest.mark.parametrize("driver", [{"name": "cma", "population": 6, "scale": "norms"}, {"name": "optuna"}])
def test_a_search_tries_the_best_baselines_after_its_start(
    settings: Settings, tmp_path: Path, driver: dict[str, Any]
) -> None:
    made = search(
        build_config(settings(driver=driver, space={"granularity": "task-wise"}), root=tmp_path), root=tmp_path
    )
    records = Trajectory.read(made.folder).records
    fit = [record.vector for record in records if record.phase == "search" and record.split == "fit"]
    values = {
        record.name: record.value for record in records if record.phase == "baseline" and record.split == "select"
    }
    best = sorted((value, name) for name, value in values.items() if name is not None and value is not None)
    tried = [vector.tolist() for vector in fit[:4] if vector is not None]
    assert len({tuple(vector) for vector in tried}) == 4

    def vector(name: str) -> list[float]:
        if name == "base":
            return [0.0, 0.0]
        if name.startswith("expert:"):
            return [1.0, 0.0] if name.endswith(":a") else [0.0, 1.0]
        value = 0.5 if name == "average" else float(name.removeprefix("uniform:"))
        return [value, value]

    expected = [list(pair) for pair in dict.fromkeys(tuple(vector(name)) for _, name in best)]
    assert tried == expected[:4]
