"""Norms of deltas and angles between them against plain torch, for whole tensors, slices and low-rank directions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from optmerge.merging.engine import Engine
from optmerge.merging.products import delta_cosines, delta_norms, group_sizes
from optmerge.merging.slices import Columns
from optmerge.merging.sources import LowRank, Segment, Source


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[torch.float32, torch.bfloat16])
def made(request: pytest.FixtureRequest) -> tuple[Engine, dict[str, list[torch.Tensor]]]:
    """Two parameters in one group and a third cut into columns; an expert, a delta, an adapter and nothing."""
    dtype = request.param
    shapes = {"one": (40, 30), "two": (7,), "cut": (6, 5)}
    parameters, segments, deltas = {}, {}, {}
    for number, (name, shape) in enumerate(shapes.items()):
        base = random(*shape, seed=number).to(dtype)
        expert, delta = (random(*shape, seed=10 + 2 * number + k).to(dtype) for k in range(2))
        third: Source | LowRank = Source(random(*shape, seed=30 + number), absolute=False)
        if len(shape) == 2:
            third = LowRank(random(shape[0], 2, seed=40), random(2, shape[1], seed=41), 0.5, lambda: torch.empty(0))
        sources = (Source(expert, absolute=True), Source(delta, absolute=False), third, None)
        low = third.tensor if isinstance(third, Source) else 0.5 * third.b @ third.a
        deltas[name] = [expert.float() - base.float(), delta.float(), low, torch.zeros(shape)]
        parameters[name] = nn.Parameter(base.clone(), requires_grad=False)
        segments[name] = [Segment((), base, sources)]
    engine = Engine(
        parameters, lambda name: segments[name], {"one": 0, "two": 0, "cut": 1}, cuts={"cut": Columns(1, 6, 5)}
    )
    return engine, deltas


def groups(deltas: dict[str, list[torch.Tensor]], k: int) -> list[torch.Tensor]:
    """A direction's delta in each group, as a vector."""
    whole = torch.cat([deltas["one"][k].reshape(-1), deltas["two"][k]])
    return [whole.double(), *deltas["cut"][k].double().unbind(1)]


def test_sizes(made: tuple[Engine, dict[str, list[torch.Tensor]]]) -> None:
    assert group_sizes(made[0]).tolist() == [1207, 6, 6, 6, 6, 6]


@pytest.mark.parametrize("columns", [[0, 1, 2, 3], [2, 0]])
def test_norms_and_cosines(made: tuple[Engine, dict[str, list[torch.Tensor]]], columns: list[int]) -> None:
    engine, deltas = made
    vectors = [groups(deltas, k) for k in columns]
    norms = torch.stack([torch.stack([part.norm() for part in parts]) for parts in vectors], 1)
    np.testing.assert_allclose(delta_norms(engine, columns), norms, rtol=1e-6)
    cosines = torch.zeros(6, len(columns), len(columns), dtype=torch.float64)
    for i, one in enumerate(vectors):
        for j, other in enumerate(vectors):
            for g in range(6):
                length = one[g].norm() * other[g].norm()
                cosines[g, i, j] = one[g] @ other[g] / length if length > 0 else 0.0
    np.testing.assert_allclose(delta_cosines(engine, columns), cosines, atol=1e-6)


def test_the_resident_values_are_left_alone(made: tuple[Engine, dict[str, list[torch.Tensor]]]) -> None:
    engine, _ = made
    before = {name: parameter.clone() for name, parameter in engine.parameters.items()}
    delta_norms(engine, [0, 1])
    delta_cosines(engine, [0, 2])
    assert all(torch.equal(engine.parameters[name], value) for name, value in before.items())
