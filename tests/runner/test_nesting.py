"""Methods nest: coefficients lie on top of what a method gives, whole or in parts, and gradients go through them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optmerge.config.load import build_config
from optmerge.config.methods import LINEAR_METHODS, METHOD_CONFIGS
from optmerge.merging.methods import build_method
from optmerge.merging.models_view import FamilyModels
from optmerge.runner.evaluator import Evaluator
from optmerge.runner.problem import Problem, open_problem
from optmerge.runner.teachers import Teachers

Settings = Callable[..., dict[str, Any]]
DATA_FREE = [name for name, config in METHOD_CONFIGS.items() if not config.facts.needs and config.facts.experts[0] <= 2]
IN_PARTS = [name for name in DATA_FREE if name in LINEAR_METHODS and name != "task_arithmetic"]
OBJECTIVE = {"terms": [{"name": "expert-kl", "normalise": "none"}]}


def opened(settings: Settings, root: Path, **changes: Any) -> Problem:
    made = settings(**{"space": {"granularity": "task-wise"}, "objective": OBJECTIVE, "limit": 8} | changes)
    return open_problem(build_config(made, root=root))


def require_gradient(problem: Problem) -> None:
    """The gradient by the coefficients is that of finite differences, along random lines."""
    evaluator = Evaluator(problem, Teachers.make(problem))
    generator = np.random.default_rng(0)
    at = generator.uniform(0.05, 0.3, problem.space.dimension)
    found = evaluator.evaluate(at, "fit", gradient=True)
    assert found.error is None
    assert found.gradient is not None
    for _ in range(2):
        line = generator.standard_normal(len(at))
        line *= 4e-3 / np.linalg.norm(line)  # the loss of such small models is far from straight
        steps = [evaluator.evaluate(at + share * line, "fit").value for share in (1.0, -1.0, 0.5, -0.5)]
        whole, half = (up - down for up, down in (steps[:2], steps[2:]))
        allowed = 0.01 * float(np.linalg.norm(found.gradient) * np.linalg.norm(line))
        assert (8 * half - whole) / 6 == pytest.approx(float(found.gradient @ line), abs=allowed)


def require_merge(problem: Problem, deltas: dict[str, list[torch.Tensor]]) -> None:
    """What is written is the base and each direction's delta times its coefficient."""
    at = np.random.default_rng(1).uniform(-0.5, 1.0, problem.space.dimension)
    problem.engine.apply(problem.expand(at))
    for name, parameter in problem.resident.parameters.items():
        expected = problem.family.read("base", name).double()
        for coefficient, delta in zip(at.tolist(), deltas[name], strict=True):
            expected = expected + coefficient * delta.double()
        torch.testing.assert_close(parameter.data.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", IN_PARTS)
def test_coefficients_scale_the_parts_of_every_method_that_has_some(
    settings: Settings, tmp_path: Path, method: str
) -> None:
    problem = opened(settings, tmp_path, method=method)
    assert [direction.kind for direction in problem.directions[2:]] == ["part", "part"]
    models = FamilyModels(problem.family)
    built = build_method(METHOD_CONFIGS[method](), models.experts)  # type: ignore[arg-type]
    built.prepare(models)
    require_merge(problem, {name: built.expert_deltas(models, name) for name in problem.family.parameters})
    require_gradient(problem)


def test_coefficients_scale_every_whole_method(settings: Settings, tmp_path: Path) -> None:
    """All at once: the engine need not know where a direction comes from."""
    problem = opened(settings, tmp_path, directions=DATA_FREE)
    models = FamilyModels(problem.family)
    built = [build_method(METHOD_CONFIGS[name](), models.experts) for name in DATA_FREE]  # type: ignore[arg-type]
    for method in built:
        method.prepare(models)
    deltas = {name: [method.delta(models, name) for method in built] for name in problem.family.parameters}
    require_merge(problem, deltas)
    require_gradient(problem)


def test_parts_wholes_and_bands_have_gradients_beside_each_other(settings: Settings, tmp_path: Path) -> None:
    directions = ["experts", "iso-c", {"name": "spectral", "of": "tsv-m", "bands": 2}]
    problem = opened(settings, tmp_path, method="dare", directions=directions, space={"granularity": "layer-wise"})
    require_gradient(problem)
