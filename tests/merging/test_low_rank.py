"""Low-rank deltas: one stacked product equals the separate ones, and its contraction is the derivative."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from optmerge.merging import low_rank
from optmerge.merging.low_rank import FactorScratch, add_low_rank, contract_low_rank
from optmerge.merging.sources import LowRank

CPU = torch.device("cpu")
SHAPES = {"wide": (6, 40), "tall": (40, 6), "one row": (1, 9), "experts": (3, 7, 5)}


def _never() -> torch.Tensor:
    raise AssertionError("nothing is made dense here")


def _terms(
    shape: Sequence[int], ranks: Sequence[int], *, dtype: torch.dtype = torch.float64, seed: int = 0
) -> list[LowRank]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    *leading, m, n = shape
    return [
        LowRank(draw(*leading, m, rank), draw(*leading, rank, n), 0.5 + position, _never)
        for position, rank in enumerate(ranks)
    ]


def _dense(term: LowRank) -> torch.Tensor:
    return term.scaling * (term.b.double() @ term.a.double())


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_one_stacked_product_is_the_sum_of_the_separate_ones(shape: tuple[int, ...]) -> None:
    terms = _terms(shape, [2, 1, 3])
    weights = [0.3, -1.5, 2.0]
    start = torch.ones(shape, dtype=torch.float64)
    out = start.clone()
    add_low_rank(out, list(zip(terms, weights, strict=True)), FactorScratch(CPU, torch.float64))
    expected = start + sum(c * _dense(term) for term, c in zip(terms, weights, strict=True))
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_are_in_fp32_whatever_the_factors_are_stored_in(dtype: torch.dtype) -> None:
    terms = _terms((24, 32), [4, 8], dtype=dtype)
    out = torch.zeros(24, 32)
    add_low_rank(out, [(terms[0], 0.25), (terms[1], 0.5)])
    expected = 0.25 * _dense(terms[0]) + 0.5 * _dense(terms[1])
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    gradient = _terms((24, 32), [1], seed=1)[0].b @ torch.ones(1, 32, dtype=torch.float64)
    found = contract_low_rank(gradient.float(), terms)
    assert found.dtype == torch.float32
    wanted = torch.stack([(gradient.float().double() * _dense(term)).sum() for term in terms])
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", [(12, 8), (6, 4, 5)], ids=["matrix", "experts"])
def test_rows_are_those_of_the_whole(shape: tuple[int, ...]) -> None:
    terms = [(term, 0.7) for term in _terms(shape, [2, 3])]
    whole, cut = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    add_low_rank(whole, terms)
    for lo, hi in ((0, 1), (1, 4), (4, shape[0])):
        add_low_rank(cut[lo:hi], [(term.rows(lo, hi), c) for term, c in terms])
    torch.testing.assert_close(cut, whole, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_contraction_is_the_derivative(shape: tuple[int, ...]) -> None:
    """Of an arbitrary function of the weights by the coefficients, against autograd."""
    terms = _terms(shape, [2, 1, 3])
    probe = _terms(shape, [4], seed=9)[0]
    coefficients = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    weights = sum((c * _dense(term) for c, term in zip(coefficients, terms, strict=True)), start=_dense(probe))
    weights.retain_grad()
    weights.tanh().sum().backward()
    assert weights.grad is not None
    assert coefficients.grad is not None
    found = contract_low_rank(weights.grad, terms, FactorScratch(CPU, torch.float64))
    torch.testing.assert_close(found, coefficients.grad, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("shape", [(37, 16), (3, 37, 16)], ids=["matrix", "experts"])
def test_a_narrow_gradient_is_widened_chunk_by_chunk(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    terms = _terms(shape, [2, 5], dtype=torch.float32)
    gradient = _dense(_terms(shape, [3], seed=4)[0]).bfloat16()
    in_one_go = contract_low_rank(gradient, terms)
    monkeypatch.setattr(low_rank, "CHUNK", 10 * 16)
    found = contract_low_rank(gradient, terms)
    wanted = torch.stack([(gradient.double() * _dense(term)).sum() for term in terms])
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found, in_one_go, rtol=1e-5, atol=1e-4)


def test_scratch_is_shared_by_parameters_of_any_size() -> None:
    """Leftovers of a wider parameter change nothing, and a narrower one takes no new memory."""
    scratch = FactorScratch(CPU, torch.float64)
    contract_low_rank(torch.ones(30, 50, dtype=torch.float64), _terms((30, 50), [9]), scratch)
    kept = scratch.take("right", 1).data_ptr()
    terms = _terms((5, 7), [2], seed=3)
    found = contract_low_rank(torch.ones(5, 7, dtype=torch.float64), terms, scratch)
    torch.testing.assert_close(found[0], _dense(terms[0]).sum())
    out = torch.zeros(5, 7, dtype=torch.float64)
    add_low_rank(out, [(terms[0], 1.0)], scratch)
    torch.testing.assert_close(out, _dense(terms[0]))
    assert scratch.take("right", 1).data_ptr() == kept


class _Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation makes, views and results written into arguments apart."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for made in tree_leaves(result):
            if isinstance(made, torch.Tensor) and made.untyped_storage().data_ptr() not in given:
                self.numel = max(self.numel, made.untyped_storage().nbytes() // made.element_size())
        return result


def test_nothing_of_the_parameters_size_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low_rank, "CHUNK", 1 << 11)
    m, n = 256, 512
    terms = _terms((m, n), [4, 4], dtype=torch.float32)
    out, narrow = torch.zeros(m, n), torch.zeros(m, n, dtype=torch.bfloat16)
    with _Largest() as product:
        terms[0].b @ terms[0].a
    with _Largest() as made:
        add_low_rank(out, [(term, 0.5) for term in terms])
        contract_low_rank(out, terms)
        contract_low_rank(narrow, terms)
    assert product.numel == m * n  # what it would take
    assert made.numel == 8 * n  # the ranks of all terms together


def test_no_terms_at_all() -> None:
    out = torch.ones(2, 3)
    add_low_rank(out, [])
    assert torch.equal(out, torch.ones(2, 3))
    assert contract_low_rank(out, []).shape == (0,)
