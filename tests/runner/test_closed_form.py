"""Closed-form baselines: in a search, as a start, by form and strength, streamed, cached, and exact on resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optmerge.config.load import build_config
from optmerge.errors import ConfigError, RunInterrupted
from optmerge.records import Trajectory
from optmerge.runner.baselines import representable
from optmerge.runner.closed_form import make_closed_forms, tensor_products
from optmerge.runner.plan import make_plan
from optmerge.runner.problem import Problem, open_problem
from optmerge.runner.references import absolute_references
from optmerge.runner.search import resume, search
from tests.zoo import facts

Settings = Callable[..., dict[str, Any]]


def opened(settings: dict[str, Any], root: Path) -> Problem:
    return open_problem(absolute_references(build_config(settings, root=root), root))


@pytest.mark.parametrize(
    ("granularity", "forms"),
    [("task-wise", ["model"]), ("layer-wise", ["model", "layer"]), ("tensor-wise", ["model", "layer", "group"])],
)
def test_forms_are_those_that_the_space_tells_apart(
    settings: Settings, tmp_path: Path, granularity: str, forms: list[str]
) -> None:
    closed = {"closed_form": True, "closed_form_ridge": [0.5], "closed_form_emphasis": [1.0]}
    made = settings(space={"granularity": granularity}, baselines=closed)
    problem = opened(made, tmp_path)
    baselines = make_closed_forms(problem, towards=0.3)
    assert [baseline.name for baseline in baselines] == [f"closed-form:{form}:1:0.5" for form in forms]
    assert all(representable(problem, baseline) for baseline in baselines)
    assert len({baseline.table.tobytes() for baseline in baselines}) == len(baselines)
    model = baselines[0].table
    assert (model == model[0]).all()
    plain = made | {"baselines": {}}
    plan, without = (make_plan(build_config(each, root=tmp_path), root=tmp_path) for each in (made, plain))
    assert plan.baselines - without.baselines == len(baselines)


def test_a_layer_is_the_least_squares_of_its_linear_layers(settings: Settings, tmp_path: Path) -> None:
    problem = opened(settings(baselines={"closed_form_ridge": [0.0], "closed_form_emphasis": [0.0]}), tmp_path)
    products = tensor_products(problem)
    row = next(n for n, group in enumerate(problem.space.groups) if group.name == "layer.1")
    inside = [name for name in problem.space.groups[row].parameters if name in products]
    assert len(inside) == 6  # query, key, value, their output, and the two of the MLP
    layer = next(b for b in make_closed_forms(problem, towards=0.3) if b.name == "closed-form:layer:0:0")
    found = layer.table[row]

    def error(coefficients: np.ndarray) -> float:
        total = 0.0
        for name in inside:
            for expert, product in enumerate(products[name]):
                off = coefficients - np.eye(len(found))[expert]
                total += off @ product @ off / product[expert, expert]
        return float(total)

    assert all(error(found + step) > error(found) for step in 1e-3 * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]]))


def test_products_are_those_of_the_experts_own_inputs(settings: Settings, tmp_path: Path) -> None:
    problem = opened(settings(), tmp_path)
    name = "encoder.layer.0.intermediate.dense.weight"
    name = next(each for each in problem.resident.parameters if each.endswith(name))
    found = tensor_products(problem)[name]
    base = problem.family.read("base", name)
    taus = [(problem.family.read(expert, name) - base).double() for expert in problem.family.experts]
    table = np.zeros((problem.space.num_rows, len(problem.directions)))
    table[:, problem.column("b")] = 1.0
    problem.engine.apply(table)
    seen: list[torch.Tensor] = []
    layer = next(
        m for m in problem.model("b").modules() if getattr(m, "weight", None) is problem.resident.parameters[name]
    )
    hook = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    masks = []
    with torch.no_grad():
        for batch in problem.calibration.tasks["b"].splits["fit"].batches(batch_tokens=4096):
            masks.append(batch.inputs["attention_mask"].bool())
            problem.outputs("b", batch)
    hook.remove()
    rows = torch.cat([x[mask] for x, mask in zip(seen, masks, strict=True)]).double()
    gram = rows.mT @ rows / len(rows)
    expected = [[float(torch.trace(a @ gram @ b.T)) for b in taus] for a in taus]
    np.testing.assert_allclose(found[1], expected, rtol=1e-4)


def test_products_are_measured_once_and_do_not_disturb_the_engine(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = opened(settings(), tmp_path)
    table = problem.expand(problem.space.start)
    problem.engine.apply(table)
    before = {name: parameter.detach().clone() for name, parameter in problem.resident.parameters.items()}
    first = tensor_products(problem)
    problem.engine.apply(table)
    assert all(torch.equal(before[name], parameter) for name, parameter in problem.resident.parameters.items())
    monkeypatch.setattr("optmerge.runner.statistics.collect_grams", None)
    again = tensor_products(problem)
    assert all(np.array_equal(a, b) for name in first for a, b in zip(first[name], again[name], strict=True))


def test_a_search_starts_from_the_best_closed_form(settings: Settings, tmp_path: Path) -> None:
    made = settings(space={"granularity": "tensor-wise", "start": "closed-form"}, budget={"evaluations": 2})
    run = search(build_config(made, root=tmp_path), root=tmp_path)
    records = Trajectory.read(run.folder).records
    tried = [
        record for record in records if record.split == "select" and (record.name or "").startswith("closed-form:")
    ]
    assert len(tried) == 3 * 3 * 3
    rows = {row["name"]: row for row in run.result["rows"] if row["family"] == "closed-form"}
    assert sorted(name.split(":")[1] for name in rows) == ["group", "layer", "model"]
    for name, row in rows.items():
        of_form = [record.value for record in tried if (record.name or "").split(":")[1] == name.split(":")[1]]
        assert row["select"] == min(value for value in of_form if value is not None)
    best = min(rows.values(), key=lambda row: row["select"])
    assert best["chosen"]
    first = next(record for record in records if record.phase == "select")
    assert first.value == pytest.approx(best["select"], rel=1e-9)


def test_a_start_outside_the_space_is_refused(settings: Settings, tmp_path: Path) -> None:
    made = settings(space={"granularity": "layer-wise", "start": "closed-form", "bounds": [2.5, 3.0]})
    with pytest.raises(ConfigError, match="no closed-form baseline lies within"):
        search(build_config(made, root=tmp_path), root=tmp_path)


def test_an_expert_without_inputs_is_told_at_once(settings: Settings, tmp_path: Path) -> None:
    made = settings(baselines={"closed_form": True})
    del made["tasks"]["b"]
    with pytest.raises(ConfigError, match=r"closed form needs inputs of every expert.* no task has the expert b"):
        build_config(made, root=tmp_path)


def test_resume_repeats_the_closed_form(settings: Settings, tmp_path: Path) -> None:
    closed = {"closed_form": True, "closed_form_ridge": [0.0], "closed_form_emphasis": [0.0, 2.0]}
    made = settings(baselines={"grid": [0.3], **closed}, budget={"evaluations": 4})
    whole = search(build_config(made | {"output": "whole"}, root=tmp_path), root=tmp_path)
    for moment in (6, 9, 12):
        asked = iter(range(100))
        folder = tmp_path / f"cut-{moment}"
        with pytest.raises(RunInterrupted):
            search(
                build_config(made | {"output": str(folder)}, root=tmp_path),
                root=tmp_path,
                stop=lambda asked=asked, moment=moment: "told" if next(asked) >= moment else None,  # type: ignore[misc]
            )
        resume(folder)
        assert facts(folder) == facts(whole.folder)
