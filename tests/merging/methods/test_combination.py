"""Inner products and combinations, chunk by chunk."""

from __future__ import annotations

import pytest
import torch

from optmerge.merging.methods.base import TensorKind
from optmerge.merging.methods.combination import Combination, inner_products, lines
from tests.merging.methods.toy import KINDS, ToyModels, every_kind, random


def test_inner_products_are_summed_in_fp64() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = [random(generator, 3, 1000, dtype=torch.float32) for _ in range(2)]
    found = inner_products(vectors)
    assert found.shape == (3, 2, 2)
    for row in range(3):
        first, second = (vector[row].double() for vector in vectors)
        torch.testing.assert_close(found[row, 0, 1], first.dot(second), rtol=1e-14, atol=0)


@pytest.mark.parametrize("origin", ["base", "zero"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rule_sees_each_whole_tensor_once(origin: str, dtype: torch.dtype) -> None:
    models = every_kind(3, dtype=dtype)
    seen: list[torch.Tensor] = []

    def rule(products: torch.Tensor) -> torch.Tensor:
        seen.append(products)
        return products.diagonal(dim1=-2, dim2=-1) / 7

    method = Combination(rule, weights=(1.0, 1.0, 1.0), origin=origin)  # type: ignore[arg-type]
    for name in models.names:
        delta = method.delta(models, name)
        base = models.base(name).double()
        experts = [models.expert(expert, name).double() for expert in models.experts]
        vectors = [expert - base if origin == "base" else expert for expert in experts]
        expected = sum(vector.square().sum() / 7 * vector for vector in vectors) - (base if origin == "zero" else 0.0)
        torch.testing.assert_close(delta.double(), expected, rtol=1e-5, atol=1e-5, msg=name)
    assert len(seen) == len(models.names)


def test_what_the_models_share_is_not_rounded() -> None:
    base = torch.full((50,), 1e4)
    models = ToyModels({"w": base}, {"one": {"w": base + 0.25}, "two": {"w": base - 0.5}})
    method = Combination(lambda _: torch.tensor([0.3, 0.7], dtype=torch.float64), weights=(0.3, 0.7), origin="zero")
    torch.testing.assert_close(method.delta(models, "w"), torch.full((50,), 0.3 * 0.25 - 0.7 * 0.5), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", KINDS)
def test_lines_are_views_of_a_parameter(name: str) -> None:
    kind = KINDS[name]
    tensor = torch.arange(torch.Size(kind.shape).numel(), dtype=torch.float32).reshape(kind.shape)
    for scope in ("row", "column"):
        for as_stored in (True, False):
            seen = lines(tensor, kind, scope, as_stored=as_stored)
            assert seen.numel() == tensor.numel()
            seen.zero_()
            assert not tensor.any()
            tensor.fill_(1)


def test_rows_are_the_inputs_of_an_output() -> None:
    conv = TensorKind("attention", False, (4, 3, 2, 2))
    assert lines(torch.empty(conv.shape), conv, "row", as_stored=False).shape == (4, 12)
    assert lines(torch.empty(conv.shape), conv, "column", as_stored=False).shape == (12, 4)
    assert lines(torch.empty(conv.shape), conv, "row", as_stored=True).shape == (4, 3, 2, 2)
    turned = TensorKind("mlp", True, (6, 10))
    assert lines(torch.empty(6, 10), turned, "row", as_stored=False).shape == (10, 6)
    assert lines(torch.empty(6, 10), turned, "row", as_stored=True).shape == (6, 10)
    assert lines(torch.empty(7, 1), TensorKind("other", False, (7, 1)), "row", as_stored=False).shape == (1, 7)
