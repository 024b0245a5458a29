"""The Gauss-Newton matrix from secants, against plain autograd through ``functional_call`` in fp64.

The evaluator's whole way is compared: space, merge, micro-batches, blocks, terms and tasks put together.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from optmerge.config.load import build_config
from optmerge.errors import ConfigError
from optmerge.models.hidden import layer_outputs
from optmerge.models.roles import layer_modules
from optmerge.objective.base import scored_logits
from optmerge.objective.objective import Objective
from optmerge.objective.outputs import Outputs
from optmerge.records import Vector
from optmerge.runner import curvature
from optmerge.runner.curvature import require_curvature
from optmerge.runner.evaluator import Evaluator
from optmerge.runner.geometry import make_geometry
from optmerge.runner.problem import Problem, open_problem
from optmerge.runner.teachers import Teachers
from optmerge.space.build import build_space
from tests.runner.test_gradient import plain_coefficients
from tests.tiny import tiny_tokenizer
from tests.zoo import make_zoo, zoo_settings

SOFTMAX = {"expert-kl": 1.0, "jensen-shannon": 0.25, "pseudo-label": 1.0}  # factor of the prediction's Fisher metric
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # space, objective
    "kl": ({"granularity": "layer-wise"}, {"terms": [{"name": "expert-kl"}]}),
    "warm kl, normalised": (
        {"granularity": "task-wise", "normalise": "softmax"},
        {"terms": [{"name": "expert-kl", "temperature": 2.0, "weight": 0.7}]},
    ),
    "several": (
        {"granularity": "task-wise"},
        {"terms": [{"name": "jensen-shannon"}, {"name": "pseudo-label"}, {"name": "expert-kl", "weight": -1.0}]},
    ),
    "worst": ({"granularity": "task-wise"}, {"terms": [{"name": "expert-kl"}], "aggregate": "worst"}),
    "roots": (
        {"granularity": "task-wise"},
        {"terms": [{"name": "entropy", "normalise": "none"}, {"name": "hidden-alignment", "layers": [1.0]}]},
    ),
}


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Problem:
    """A problem in fp64 whose batches hold few examples."""
    zoo = make_zoo(tmp_path_factory.mktemp(request.param), request.param, dtype=torch.float64)
    settings = zoo_settings(zoo, splits={"fit": 7, "select": 4, "report": 4}, batch_tokens=40)
    for task in settings["tasks"].values():
        del task["label"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTMERGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr("optmerge.runner.problem.tokenizer_for", lambda family, who: tiny_tokenizer(request.param))
        return open_problem(build_config(settings, root=zoo))


def prepare(problem: Problem, space: dict[str, Any], objective: dict[str, Any]) -> Evaluator:
    config = problem.config.model_dump(mode="json") | {"space": space, "objective": objective}
    problem.config = build_config(config, root=Path())
    roles = {name: parameter.role for name, parameter in problem.family.parameters.items()}
    problem.space = build_space(problem.config.space, roles, list(problem.family.experts))
    problem.objective = Objective(problem.config.objective, list(problem.config.tasks), dict.fromkeys("ab"))
    problem.engine.group_of = problem.space.row_of
    problem.engine.forget()
    evaluator = Evaluator(problem, Teachers.make(problem))
    base = evaluator.measure(np.zeros((problem.space.num_rows, len(problem.directions))), "fit")
    problem.objective.set_normalisers("fit", base.means)
    evaluator.geometry = make_geometry(problem, problem.space.start)
    return evaluator


def a_vector(problem: Problem) -> Vector:
    """A vector with a variable at an upper bound, which the space is given there."""
    vector = np.random.default_rng(0).uniform(0.1, 0.7, problem.space.dimension)
    upper = problem.space.upper.copy()
    upper[0] = vector[0]
    problem.space = replace(problem.space, upper=upper)
    return vector


def slopes(features: Tensor, variables: Tensor) -> Tensor:
    """[d, *features.shape]: the Jacobian, by differentiating a vector-Jacobian product by its vector."""
    probe = torch.zeros_like(features, requires_grad=True)
    (pulled,) = torch.autograd.grad(features, variables, probe, create_graph=True)
    return torch.stack([torch.autograd.grad(p, probe, retain_graph=True)[0] for p in pulled])


def plain_matrix(evaluator: Evaluator, vector: Vector, weights: dict[str, float]) -> Tensor:
    """The Gauss-Newton matrix of the terms that judge the model, with one graph through merge and models."""
    problem, family = evaluator.problem, evaluator.problem.family
    composed = problem.objective
    total = torch.zeros(len(vector), len(vector), dtype=torch.float64)
    for task, data in problem.calibration.tasks.items():
        for position in range(data.splits["fit"].size):
            variables = torch.tensor(vector, requires_grad=True)
            table = plain_coefficients(problem, variables)
            merged = {}
            for name in problem.resident.parameters:
                base, row = family.read("base", name), table[problem.space.row_of[name]]
                merged[name] = base + sum(
                    c * (family.read(e, name) - base) for c, e in zip(row, family.experts, strict=True)
                )
            (batch,) = data.splits["fit"].batches(batch_tokens=1, positions=[position])
            model = problem.resident.model_for(data.expert)
            with layer_outputs(layer_modules(model), composed.layers(family.num_layers)) as hidden:
                options = {**batch.inputs, **problem.forward.options}
                logits = functional_call(model, merged, kwargs=options, tie_weights=True).logits
            rows = scored_logits(logits, batch)
            for term in composed.terms:
                scale = composed.configs[term.name].weight / composed._divisor("fit", task, term.name)
                scale *= weights[task] / data.splits["fit"].size
                if scale < 0:
                    continue
                if term.name in SOFTMAX:
                    warmth = getattr(term.config, "temperature", 1.0)
                    log_q = (rows / warmth).log_softmax(-1)
                    share = log_q.detach().exp() * warmth**2 * SOFTMAX[term.name] / len(rows)
                else:
                    teacher = evaluator.teachers.batch(task, "fit", batch)
                    log_q = (2 * term.per_example(Outputs(logits, hidden), batch, teacher)).sqrt()
                    share = torch.ones_like(log_q)
                found = slopes(log_q, variables)
                total += scale * torch.einsum("i...,j...,...->ij", found, found, share)
    return total


@pytest.mark.parametrize("name", CASES)
def test_the_matrix_equals_autograd(opened: Problem, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = prepare(opened, *CASES[name])
    vector = a_vector(opened)
    found = evaluator.evaluate(vector, "fit", gradient=True, jacobian=True)
    assert found.error is None
    assert found.curvature is not None
    parts = found.per_task
    weights = {task: 0.5 for task in parts}
    if opened.config.objective.aggregate.name == "worst":
        weights = {task: float(part == max(parts.values())) for task, part in parts.items()}
    with sdpa_kernel(SDPBackend.MATH):
        expected = plain_matrix(evaluator, vector, weights).numpy()
    scale = np.sqrt(np.outer(expected.diagonal(), expected.diagonal())) + 1e-12 * expected.diagonal().max()
    assert expected.diagonal().max() > 1e-6
    assert float(np.abs((found.curvature - expected) / scale).max()) < 1e-3
    assert (found.curvature == found.curvature.T).all()
    eigenvalues = np.linalg.eigvalsh(found.curvature)  # below 0 by no more than the rounding of finding them
    assert eigenvalues[0] > -1e-12 * eigenvalues[-1]

    monkeypatch.setattr(curvature, "BLOCK", 1)  # a batch at a time
    alone = evaluator.evaluate(vector, "fit", jacobian=True)
    assert alone.value == pytest.approx(found.value, rel=1e-12)
    assert alone.curvature is not None
    assert float(np.abs((alone.curvature - found.curvature) / scale).max()) < 1e-5


def test_terms_of_the_coefficients_add_their_hessian_where_it_is_positive(opened: Problem) -> None:
    terms = [
        {"name": "expert-kl", "weight": 0.0},
        {"name": "anchor-l2", "weight": 0.4},
        {"name": "similarity", "weight": 3.0},
    ]
    evaluator = prepare(opened, {"granularity": "layer-wise"}, {"terms": terms})
    vector = a_vector(opened)
    geometry = evaluator.geometry
    assert geometry is not None

    def plain(variables: Tensor) -> Tensor:
        table = plain_coefficients(opened, variables)
        rows = torch.stack([torch.stack([torch.as_tensor(c, dtype=torch.float64) for c in row]) for row in table])
        regularisers = opened.objective.regularisers
        return sum(opened.objective.configs[t.name].weight * t.value(rows, geometry) for t in regularisers)

    hessian = torch.autograd.functional.hessian(plain, torch.tensor(vector))
    values, vectors = torch.linalg.eigh(hessian)
    assert float(values.min()) < 0 < float(values.max())
    found = evaluator.evaluate(vector, "fit", jacobian=True).curvature
    np.testing.assert_allclose(found, vectors @ values.clamp(min=0).diag() @ vectors.T, atol=1e-8)


def test_a_large_vocabulary_is_cut_to_the_likeliest_classes(opened: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = prepare(opened, {"granularity": "task-wise"}, {"terms": [{"name": "expert-kl"}]})
    whole = evaluator.evaluate(a_vector(opened), "fit", jacobian=True).curvature
    monkeypatch.setattr("optmerge.objective.curvature.MOST_CLASSES", 1)
    monkeypatch.setattr("optmerge.objective.curvature.LIKELIEST", 2)
    part = evaluator.evaluate(a_vector(opened), "fit", jacobian=True).curvature
    assert whole is not None
    assert part is not None
    assert np.linalg.eigvalsh(whole - part).min() > -1e-9 * float(whole.max())
    assert 0 < np.trace(part) <= np.trace(whole) * (1 + 1e-9)


def test_it_costs_d_plus_one_forward_passes(opened: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = prepare(opened, {"granularity": "task-wise"}, {"terms": [{"name": "expert-kl"}]})
    calls: list[str] = []
    real = opened.outputs
    monkeypatch.setattr(opened, "outputs", lambda task, *rest: calls.append(task) or real(task, *rest))
    evaluator.evaluate(a_vector(opened), "fit")
    once = len(calls)
    calls.clear()
    evaluator.evaluate(a_vector(opened), "fit", jacobian=True)
    assert len(calls) == once * (2 + opened.space.dimension)


def test_a_point_near_by_without_a_value_fails_the_evaluation(opened: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = prepare(opened, {"granularity": "task-wise"}, {"terms": [{"name": "expert-kl"}]})
    monkeypatch.setitem(curvature.STEPS, torch.float64, math.nan)
    found = evaluator.evaluate(a_vector(opened), "fit", jacobian=True)
    assert found.failed
    assert "Gauss-Newton matrix is not finite" in str(found.error)


def test_a_function_of_means_is_refused() -> None:
    terms = {"terms": [{"name": "information-maximisation"}, {"name": "expert-kl"}]}
    config = build_config(zoo_settings(Path("/nowhere"), objective=terms), root=Path())
    objective = Objective(config.objective, ["a", "b"], {"a": 2, "b": 3})
    require_curvature("adam", objective)
    with pytest.raises(ConfigError, match=r"information-maximisation is a function of means.*lbfgs or adam"):
        require_curvature("levenberg-marquardt", objective)
