"""The search's gradient against autograd through ``functional_call`` in fp64, on real architectures.

The evaluator's whole way is compared: merge, micro-batches, terms, tasks put together, contraction, and the space's
pull-back; with plain autograd through all of it, in plain torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call

from optmerge.config.load import build_config
from optmerge.merging.slices import Cut
from optmerge.models.checkpointing import Checkpointing
from optmerge.models.hidden import layer_outputs
from optmerge.models.roles import layer_modules
from optmerge.objective.objective import Objective
from optmerge.objective.outputs import Outputs
from optmerge.records import Vector
from optmerge.runner.evaluator import Evaluator
from optmerge.runner.geometry import make_geometry
from optmerge.runner.problem import Problem, open_problem
from optmerge.runner.teachers import Teachers
from optmerge.space.build import build_space
from tests.export.oracle import elements
from tests.tiny import tiny_tokenizer
from tests.zoo import make_zoo, zoo_settings

KINDS = ["llama-tied", "llama", "qwen2", "gpt2", "bert"]  # bert: experts with heads of their own
FREEZE = [{"match": "norm", "freeze": 0.25}, {"match": "mlp", "direction": "b", "freeze": 0.0}]


@dataclass(frozen=True)
class Case:
    granularity: str
    normalise: str = "none"
    aggregate: str | dict[str, Any] = "mean"
    checkpointing: bool = False
    frozen: bool = False
    terms: tuple[dict[str, Any], ...] = ({"name": "expert-kl"}, {"name": "entropy", "weight": 0.3, "normalise": "none"})


SUMMARIES = (
    {"name": "information-maximisation", "weight": 0.7, "normalise": "none"},
    {"name": "pseudo-label", "filter": "agreement"},
)
COEFFICIENTS = (
    {"name": "expert-kl"},
    {"name": "anchor-l2", "weight": 0.4, "scale": "norms"},
    {"name": "similarity", "weight": 0.2},
)
HIDDEN = (
    {"name": "hidden-alignment", "layers": [0, 1.0], "normalise": "none"},
    {"name": "jensen-shannon", "weight": 0.5},
)
CASES = {
    "mean": Case("tensor-wise"),
    "model-wise": Case("model-wise", checkpointing=True),
    "frozen, worst": Case("layer-kind-wise", aggregate="worst", frozen=True),
    "sum, cvar": Case("task-wise", "sum", {"name": "cvar", "share": 0.5}),
    "softmax, cvar, checkpointed": Case(
        "layer-wise", "softmax", {"name": "cvar", "share": 0.4}, checkpointing=True, frozen=True
    ),
    "column-wise": Case("column-wise", frozen=True),
    "column-wise, softmax, worst": Case("column-wise", "softmax", "worst"),
    "chunk-wise": Case("chunk-wise", checkpointing=True),
    "sum, worst, checkpointed": Case("tensor-wise", "sum", "worst", checkpointing=True, frozen=True),
    "summaries": Case("tensor-wise", terms=SUMMARIES),
    "summaries, worst, checkpointed": Case("layer-wise", "sum", "worst", checkpointing=True, terms=SUMMARIES),
    "hidden, checkpointed": Case("tensor-wise", checkpointing=True, terms=HIDDEN),
    "coefficients": Case("layer-kind-wise", terms=COEFFICIENTS, frozen=True),
    "coefficients, softmax, cvar": Case(
        "layer-wise", "softmax", {"name": "cvar", "share": 0.5}, terms=COEFFICIENTS, frozen=True
    ),
}


@pytest.fixture(scope="module", params=KINDS)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Problem, Teachers]:
    """A problem in fp64 with three tasks for two experts, whose batches hold few examples."""
    zoo = make_zoo(tmp_path_factory.mktemp(request.param), request.param, dtype=torch.float64)
    settings = zoo_settings(zoo, splits={"fit": 9, "select": 4, "report": 4}, batch_tokens=40)
    for task in settings["tasks"].values():
        del task["label"]
    settings["tasks"]["c"] = {"expert": "a", "data": str(zoo / "two.jsonl")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPTMERGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        # transformers reads any tokenizer beside a Qwen2 model as a byte-level one, and the tiny one has whole words.
        patch.setattr("optmerge.runner.problem.tokenizer_for", lambda family, who: tiny_tokenizer(request.param))
        problem = open_problem(build_config(settings, root=zoo))
        return problem, Teachers.make(problem)


def prepare(problem: Problem, teachers: Teachers, case: Case) -> Evaluator:
    """The problem with the space, objective and checkpointing of a case."""
    rules = FREEZE if case.frozen else []
    space = {"granularity": case.granularity, "normalise": case.normalise, "rules": rules}
    objective = {"terms": list(case.terms), "task_weights": {"a": 2.0}, "aggregate": case.aggregate}
    config = problem.config.model_dump(mode="json") | {"space": space, "objective": objective}
    problem.config = build_config(config, root=Path())
    roles = {name: parameter.role for name, parameter in problem.family.parameters.items()}
    shapes = problem.family.parameters
    problem.space = build_space(problem.config.space, roles, list(problem.family.experts), shapes=shapes)
    problem.objective = Objective(problem.config.objective, list(problem.config.tasks), dict.fromkeys("abc"))
    problem.engine.group_of, problem.engine.cuts = problem.space.row_of, problem.space.cuts
    models = [problem.resident.model_for(expert) for expert in problem.family.experts]
    problem.checkpointing = Checkpointing(models) if case.checkpointing else None
    hidden = problem.objective.keep(problem.family.num_layers).layers
    return Evaluator(problem, Teachers.make(problem) if hidden else teachers)


def plain_coefficients(problem: Problem, variables: torch.Tensor) -> list[list[torch.Tensor | float]]:
    """The space's decoding in plain torch: [G][D]."""
    space, kind = problem.space, problem.config.space.normalise
    table: list[list[torch.Tensor | float]] = []
    for row, frozen in zip(space.index.tolist(), space.frozen.tolist(), strict=True):
        own = [column for column, index in enumerate(row) if index >= 0]
        coefficients: list[torch.Tensor | float] = list(frozen)
        if own:
            values = torch.stack([variables[row[column]] for column in own])
            if kind != "none":
                values = values / values.sum() if kind == "sum" else values.softmax(0)
            for column, value in zip(own, values, strict=True):
                coefficients[column] = value
        table.append(coefficients)
    return table


def spread(cut: Cut, rows: list[list[torch.Tensor | float]], shape: torch.Size) -> list[torch.Tensor | float]:
    """Per direction the coefficient of every element of a parameter that is cut."""
    groups = torch.tensor(elements(cut))
    columns = ([torch.as_tensor(row[k], dtype=torch.float64) for row in rows] for k in range(len(rows[0])))
    return [torch.stack(column)[groups].view(shape) for column in columns]


def plain_value(evaluator: Evaluator, variables: torch.Tensor) -> torch.Tensor:
    """The objective on fit, differentiable by the variables: one graph through merge, models, terms and tasks."""
    problem, family = evaluator.problem, evaluator.problem.family
    table = plain_coefficients(problem, variables)
    merged = {}
    for name in problem.resident.parameters:
        base = family.read("base", name)
        first, cut = problem.space.row_of[name], problem.space.cuts.get(name)
        row = table[first] if cut is None else spread(cut, table[first : first + cut.count], base.shape)
        merged[name] = base + sum(c * (family.read(e, name) - base) for c, e in zip(row, family.experts, strict=True))
    composed, geometry = problem.objective, evaluator.geometry
    parts = []
    for task, data in problem.calibration.tasks.items():
        sums: dict[str, torch.Tensor] = {}
        for position in range(data.splits["fit"].size):
            (batch,) = data.splits["fit"].batches(batch_tokens=1, positions=[position])
            options = {**batch.inputs, **problem.forward.options}
            model = problem.resident.model_for(data.expert)
            with layer_outputs(layer_modules(model), composed.layers(family.num_layers)) as hidden:
                logits = functional_call(model, merged, kwargs=options, tie_weights=True).logits
            teacher = evaluator.teachers.batch(task, "fit", batch)
            for term in composed.terms:
                found = term.per_example(Outputs(logits, hidden), batch, teacher).sum(0)
                sums[term.name] = sums[term.name] + found if term.name in sums else found
        count = data.splits["fit"].size
        values = {term.name: term.finish(sums[term.name] / count) for term in composed.terms}
        scales = {name: composed.configs[name].weight / composed._divisor("fit", task, name) for name in values}
        parts.append(torch.stack([scales[name] * value for name, value in values.items()]).sum())
    coefficients = torch.stack([torch.stack([torch.as_tensor(c, dtype=torch.float64) for c in row]) for row in table])
    assert geometry is not None
    added = sum(composed.configs[t.name].weight * t.value(coefficients, geometry) for t in composed.regularisers)
    x, p = torch.stack(parts), torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    match problem.config.objective.aggregate.name:
        case "mean":
            return (p * x).sum() + added
        case "worst":
            return x.max() + added
        case _:
            tail = 2 / 3  # two of the three tasks, for shares of 0.4 and 0.5
            return torch.stack([eta + (p * (x - eta).relu()).sum() / tail for eta in x]).min() + added


def a_vector(problem: Problem) -> Vector:
    """A vector with one variable at each of its bounds, if there are that many."""
    space = problem.space
    low, high = (0.1, 0.9) if space.normalise is not None else (-0.3, 0.9)
    vector = np.random.default_rng(0).uniform(low, high, space.dimension)
    if space.dimension > 2:
        vector[0], vector[-1] = space.lower[0] if space.normalise is None else vector[0], space.upper[-1]
    return vector


@pytest.mark.parametrize("form", ["accumulate", "hooks"])
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_equal_autograd(
    opened: tuple[Problem, Teachers], name: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, teachers = opened
    monkeypatch.setattr(problem.engine, "form", form)
    evaluator = prepare(problem, teachers, CASES[name])
    shape = (problem.space.num_rows, len(problem.directions))
    problem.engine.forget()
    base = evaluator.measure(np.zeros(shape), "fit")
    problem.objective.set_normalisers("fit", base.means)
    vector = a_vector(problem)
    evaluator.geometry = make_geometry(problem, problem.space.start)
    found = evaluator.evaluate(vector, "fit", gradient=True)
    assert found.error is None
    assert found.gradient is not None

    variables = torch.tensor(vector, requires_grad=True)
    value = plain_value(evaluator, variables)
    (expected,) = torch.autograd.grad(value, variables)
    assert found.value == pytest.approx(float(value.detach()), rel=1e-9)
    scale = float(expected.abs().max())
    np.testing.assert_allclose(found.gradient, expected.numpy(), rtol=1e-5, atol=1e-9 * scale)
    assert scale > 1e-4
    again = evaluator.evaluate(vector, "fit")
    assert again.value == pytest.approx(found.value, rel=1e-12)
