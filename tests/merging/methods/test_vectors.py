"""Chunks tile every tensor in flat order, whatever its strides."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optmerge.merging.methods import TensorKind
from optmerge.merging.methods.vectors import RawVectors, boxes
from tests.merging.methods.toy import ToyModels, random

SHAPES = st.lists(st.integers(0, 6), max_size=4).map(tuple)


@given(SHAPES, st.integers(1, 50))
def test_boxes_tile_in_flat_order(shape: tuple[int, ...], limit: int) -> None:
    numbers = torch.arange(math.prod(shape)).reshape(shape)
    seen = []
    for offset, index in boxes(shape, limit):
        part = numbers[index].reshape(-1)
        assert part.numel() <= limit
        assert offset == len(seen)
        seen += part.tolist()
    assert seen == list(range(numbers.numel()))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple), st.integers(1, 50))
def test_whole_rows_are_never_cut(shape: tuple[int, ...], limit: int) -> None:
    numbers = torch.arange(math.prod(shape)).reshape(shape)
    parts = [numbers[index] for _, index in boxes(shape, limit, whole_rows=True)]
    assert all(part.shape[-1] == shape[-1] for part in parts)
    assert torch.equal(torch.cat([part.reshape(-1) for part in parts]), numbers.reshape(-1))


@pytest.mark.parametrize("limit", [1, 7, 24, 1000])
@pytest.mark.parametrize("by_rows", [False, True])
def test_task_vectors_of_transposed_and_sliced_parameters(limit: int, by_rows: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(8, 12, generator=generator).mT[::2]
    expert = torch.randn(12, 8, generator=generator).bfloat16()[::2]
    kinds = {"w": TensorKind("mlp", True, (6, 8))}
    models = ToyModels({"w": base}, {"e": {"w": expert}}, kinds=kinds)
    vectors = RawVectors(models, by_rows=by_rows, limit=limit)
    result = torch.full((6, 8), torch.nan)
    for chunk in vectors.chunks("e", "w"):
        vectors.oriented(result, "w")[chunk.box] = chunk.values
    assert torch.equal(result, expert.float() - base)


def test_the_models_are_never_written_to() -> None:
    base, expert = torch.ones(5), torch.full((5,), 3.0)
    for chunk in RawVectors(ToyModels({"w": base}, {"e": {"w": expert}})).chunks("e", "w"):
        chunk.values.zero_()
    assert base.tolist() == [1.0] * 5
    assert expert.tolist() == [3.0] * 5


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("size", [0, 10, 61, 640, 64 * 61 * 7 + 5])
def test_a_sample_holds_entries_of_the_task_vector(size: int, turned: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    base, expert = (torch.randn(size, 2, generator=generator).bfloat16() for _ in range(2))
    if turned:
        base, expert = base.mT.contiguous().mT, expert.mT.contiguous().mT
    vectors = RawVectors(ToyModels({"w": base}, {"e": {"w": expert}}))
    sample = vectors.sample("e", "w", 61)
    assert sample.dtype == torch.float32
    assert len(sample) == pytest.approx(2 * size / 61, abs=64)
    assert set(sample.tolist()) <= set((expert.float() - base.float()).flatten().tolist())
    assert torch.equal(sample, vectors.sample("e", "w", 61))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("stride", [1, 3])
def test_a_sample_of_a_large_tensor_leaves_the_models_alone(dtype: torch.dtype, stride: int) -> None:
    generator = torch.Generator().manual_seed(0)
    base, tuned = (random(generator, 60, 70, dtype=dtype) for _ in range(2))
    models = ToyModels({"w": base.clone()}, {"a": {"w": tuned.clone()}})
    sampled = RawVectors(models).sample("a", "w", stride)
    assert torch.equal(models.expert("a", "w"), tuned)
    assert torch.equal(models.base("w"), base)
    every = set(models.task_vector("a", "w").flatten().tolist())
    assert len(sampled) >= 4200 // stride - 64 * stride
    assert set(sampled.tolist()) <= every
