"""The search's gradient against autograd through ``functional_call`` in fp64, on real architectures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import functional_call

from optmerge.config.spaces import SpaceConfig
from optmerge.merging.deltas import Deltas, expand_directions
from optmerge.merging.engine import Engine
from optmerge.models.family import open_family
from optmerge.models.resident import ResidentModel
from optmerge.space.space import build_space
from tests.tiny import save_family


@pytest.mark.parametrize("form", ["accumulate", "hooks"])
@pytest.mark.parametrize(
    ("kind", "granularity"),
    [
        ("llama-tied", "tensor-wise"),
        ("llama", "layer-kind-wise"),
        ("qwen2", "layer-wise"),
        ("gpt2", "task-wise"),
        ("bert", "model-wise"),
    ],
)
def test_contraction_equals_autograd(tmp_path: Path, kind: str, granularity: str, form: str) -> None:
    saved = save_family(kind, tmp_path, dtype=torch.float64)
    experts = {name: str(folder) for name, folder in saved.experts.items()}
    family = open_family(str(saved.base), experts, relative_to=tmp_path)
    resident = ResidentModel(family, device=torch.device("cpu"), dtype=torch.float64)
    directions = expand_directions(["experts"], list(experts))
    deltas = Deltas(family, directions, cache=tmp_path / "cache")
    roles = {name: parameter.role for name, parameter in family.parameters.items()}
    space = build_space(SpaceConfig.model_validate({"granularity": granularity}), roles, list(experts))
    group_of = {name: row for row, group in enumerate(space.groups) for name in group.parameters}
    engine = Engine(
        resident.parameters,
        lambda name: family.read("base", name),
        deltas.sources,
        group_of,
        form=form,  # type: ignore[arg-type]
    )
    vector = np.random.default_rng(0).uniform(-0.3, 0.9, space.dimension)
    inputs = torch.arange(24).remainder(60).reshape(3, 8)

    engine.apply(space.decode(vector))
    with engine.gradient(space.searched_groups) as gradient:
        for weight, expert in enumerate(experts, 1):
            for row in inputs.split(1):  # micro-batches and tasks accumulate
                logits = resident.model_for(expert)(input_ids=row).logits
                (weight * logits.log_softmax(-1).square().mean()).backward()
    ours = space.pull_back(gradient.table(), vector)

    variables = torch.tensor(vector, requires_grad=True)
    index = torch.tensor(space.index)
    merged = {}
    for name in resident.parameters:
        value = family.read("base", name)
        for column, expert in enumerate(experts):
            value = value + variables[index[group_of[name], column]] * (
                family.read(expert, name) - family.read("base", name)
            )
        merged[name] = value
    total = torch.zeros((), dtype=torch.float64)
    for weight, expert in enumerate(experts, 1):
        model = resident.model_for(expert)
        for row in inputs.split(1):
            logits = functional_call(model, merged, kwargs={"input_ids": row}, tie_weights=True).logits
            total = total + weight * logits.log_softmax(-1).square().mean()
    (expected,) = torch.autograd.grad(total, variables)
    np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-5, atol=1e-12)
    assert np.abs(ours).max() > 1e-6
