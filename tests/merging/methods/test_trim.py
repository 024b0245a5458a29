"""Trimming keeps exactly as many entries as asked, over each scope."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optmerge.config.methods import Scope
from optmerge.merging.methods import TensorKind
from optmerge.merging.methods.trim import Trimmed, rounded, truncated
from optmerge.merging.methods.vectors import RawVectors
from tests.merging.methods.toy import ToyModels, of_deltas, random


def trimmed(models: ToyModels, density: float, scope: Scope, *, limit: int = 16) -> dict[str, dict[str, torch.Tensor]]:
    vectors = Trimmed(RawVectors(models, by_rows=scope == "row", limit=limit), density=density, scope=scope)
    vectors.prepare()
    results: dict[str, dict[str, torch.Tensor]] = {}
    for expert in models.experts:
        results[expert] = {}
        for name in models.names:
            result = torch.full(models.base(name).shape, torch.nan, dtype=models.base(name).dtype)
            for chunk in vectors.chunks(expert, name):
                vectors.oriented(result, name)[chunk.box] = chunk.values
            results[expert][name] = result
    return results


def stable(values: torch.Tensor, keep: int) -> torch.Tensor:
    flat = values.reshape(-1)
    order = flat.abs().argsort(descending=True, stable=True)[:keep]
    result = torch.zeros_like(flat)
    result[order] = flat[order]
    return result.reshape(values.shape)


def models() -> ToyModels:
    generator = torch.Generator().manual_seed(1)
    return of_deltas([{"a": random(generator, 10, 7), "b": 10 * random(generator, 30)} for _ in range(3)])


@pytest.mark.parametrize("density", [0.0, 0.01, 0.2, 0.5, 0.99, 1.0])
def test_tensor_scope(density: float) -> None:
    toy = models()
    for expert, tensors in trimmed(toy, density, "tensor").items():
        for name, result in tensors.items():
            assert torch.equal(result, stable(toy.expert(expert, name), rounded(density, result.numel())))


@pytest.mark.parametrize("density", [0.0, 0.2, 0.7, 1.0])
def test_model_scope(density: float) -> None:
    toy = models()
    for expert, tensors in trimmed(toy, density, "model").items():
        whole = torch.cat([toy.expert(expert, name).reshape(-1) for name in toy.names])
        got = torch.cat([tensors[name].reshape(-1) for name in toy.names])
        assert torch.equal(got, stable(whole, rounded(density, 100)))


def test_a_model_scope_keeps_hardly_anything_of_the_smaller_tensor() -> None:
    generator = torch.Generator().manual_seed(0)
    toy = of_deltas([{"small": random(generator, 1000), "large": 10 * random(generator, 1000)}])
    kept = {name: result.count_nonzero().item() for name, result in trimmed(toy, 0.2, "model")["expert-0"].items()}
    assert kept["small"] == 0
    assert kept["large"] == 400


@pytest.mark.parametrize("density", [0.1, 0.3, 0.9])
def test_stacked_scope(density: float) -> None:
    toy = models()
    results = trimmed(toy, density, "stacked")
    for name in toy.names:
        stack = torch.stack([toy.expert(expert, name) for expert in toy.experts])
        expected = stable(stack, rounded(density, stack.numel()))
        assert torch.equal(torch.stack([results[expert][name] for expert in toy.experts]), expected)


@pytest.mark.parametrize("input_first", [False, True])
def test_a_row_is_the_inputs_of_one_output(input_first: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    shape = (9, 11)
    kinds = {"w": TensorKind("mlp", input_first, shape)}
    toy = of_deltas([{"w": random(generator, *shape), "v": random(generator, 8)}], kinds=kinds)
    results = trimmed(toy, 0.3, "row")["expert-0"]
    weight, result = toy.expert("expert-0", "w"), results["w"]
    if input_first:
        weight, result = weight.mT, result.mT
    for row, kept in zip(weight, result, strict=True):
        assert torch.equal(kept, stable(row, rounded(0.3, len(row))))
    assert torch.equal(results["v"], stable(toy.expert("expert-0", "v"), 2))


@pytest.mark.parametrize(("shape", "rows"), [((6, 3, 2, 2), 6), ((1, 6, 3, 5), 6), ((9, 1, 1), 1), ((1, 9), 1)])
def test_rows_of_convolutions_and_of_vectors_in_any_shape(shape: tuple[int, ...], rows: int) -> None:
    toy = of_deltas([{"w": random(torch.Generator().manual_seed(3), *shape)}])
    result = trimmed(toy, 0.3, "row")["expert-0"]["w"]
    for row, kept in zip(toy.expert("expert-0", "w").view(rows, -1), result.view(rows, -1), strict=True):
        assert torch.equal(kept, stable(row, rounded(0.3, len(row))))


@given(st.lists(st.integers(-2, 2), min_size=1, max_size=60), st.floats(0, 1), st.integers(1, 20))
def test_ties_are_kept_in_flat_order_whatever_the_chunks(values: list[int], density: float, limit: int) -> None:
    delta = torch.tensor(values, dtype=torch.float32)
    toy = of_deltas([{"w": delta}])
    expected = stable(delta, rounded(density, len(values)))
    for scope in ("tensor", "model", "stacked", "row"):
        assert torch.equal(trimmed(toy, density, scope, limit=limit)["expert-0"]["w"], expected), scope


def test_ties_of_a_model_go_to_its_first_tensors() -> None:
    toy = of_deltas([{"first": torch.ones(6), "second": torch.ones(6)}])
    results = trimmed(toy, 8 / 12, "model")["expert-0"]
    assert results["first"].tolist() == [1] * 6
    assert results["second"].tolist() == [1, 1, 0, 0, 0, 0]


def test_counts() -> None:
    assert [rounded(0.2, size) for size in (0, 1, 2, 3, 4, 13)] == [0, 0, 0, 1, 1, 3]
    assert [truncated(0.2, size) for size in (1, 4, 5, 14)] == [1, 1, 1, 2]
    assert truncated(0.0, 100) == 0
