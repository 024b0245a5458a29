"""Thinning: the compiled kernel and numpy have the same bits, sums included, wherever chunks begin and end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optmerge.merging import kernels
from optmerge.merging.methods.rank_drop import stay_probabilities
from optmerge.merging.methods.thinning import Odds, Stays, Sums, Words, keep, new_sums, thin, totals

WORDS = Words(3, "law", "w")


@pytest.fixture(params=["torch", "compiled"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("OPTMERGE_KERNELS", request.param)
    kernels.compiled.cache_clear()
    yield request.param
    monkeypatch.undo()
    kernels.compiled.cache_clear()


class Thinned(NamedTuple):
    values: torch.Tensor
    stays: Stays
    sums: Sums


def thinned(rows: torch.Tensor, odds: Odds, *, start: int = 0, heights: Sequence[int] | None = None) -> Thinned:
    """A matrix thinned in chunks of so many rows."""
    values, stays, sums = rows.clone(), np.full(rows.numel(), 7, np.uint8), new_sums()
    first, width = 0, rows.shape[-1]
    for height in heights or [len(rows)]:
        part = slice(first * width, (first + height) * width)
        thin(values[first : first + height], WORDS, start + part.start, odds, stays=stays[part], sums=sums)
        first += height
    return Thinned(values, stays, sums)


def by(setting: str, monkeypatch: pytest.MonkeyPatch, rows: torch.Tensor, odds: Odds, start: int) -> Thinned:
    monkeypatch.setenv("OPTMERGE_KERNELS", setting)
    kernels.compiled.cache_clear()
    return thinned(rows, odds, start=start)


def same(a: Thinned, b: Thinned) -> bool:
    bits = np.array_equal(a.values.numpy().view(np.uint8), b.values.numpy().view(np.uint8))  # -0 is not 0
    return bits and np.array_equal(a.stays, b.stays) and np.array_equal(a.sums, b.sums)


def alike(drop: float = 0.4, factor: float = 1.0) -> Odds:
    return Odds(np.array([round(drop * 2**32)], np.uint64), np.array([factor]))


def ranked(size: int, *, inverse: bool = False) -> Odds:
    stays = stay_probabilities(size, 0.5, 0.4).numpy()
    return Odds(np.round((1 - stays) * 2**32).astype(np.uint64), 1 / stays if inverse else np.ones(size))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 5),
    width=st.sampled_from([1, 2, 7, 16, 33, 511, 512, 513, 2500]),
    start=st.integers(0, 100),
    kind=st.sampled_from(["fp32", "bf16", "ties", "zeros", "tiny and huge"]),
    by_rank=st.booleans(),
    inverse=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_compiled_and_numpy_have_the_same_bits(
    rows: int, width: int, start: int, kind: str, by_rank: bool, inverse: bool, seed: int
) -> None:
    values = normal(rows, width, seed=seed)
    if kind == "bf16":
        values = values.bfloat16().float() - normal(rows, width, seed=seed + 1).bfloat16().float()
    elif kind == "ties":
        values = (2 * values).round()  # zeros of both signs among them
    elif kind == "zeros":
        values = torch.zeros_like(values)
    elif kind == "tiny and huge":
        values = values * 10 ** (30 * normal(rows, width, seed=seed + 2)).clamp(-44, 37)
    odds = ranked(width, inverse=inverse) if by_rank else alike(factor=1 / 0.6 if inverse else 1.0)
    with pytest.MonkeyPatch.context() as monkeypatch:
        found = [by(setting, monkeypatch, values, odds, start) for setting in ("compiled", "torch")]
    kernels.compiled.cache_clear()
    assert same(*found)


def test_entries_stay_by_their_word_and_their_rank(library: str) -> None:
    values = torch.tensor([[0.5, -2.0, 1.0, -1.0], [3.0, 0.0, -0.0, 0.25]])
    ranks = np.array([[0, 3, 1, 2], [3, 0, 1, 2]])
    odds = Odds(np.array([2**32, 2**31, 2**30, 0], np.uint64), np.array([8.0, 4.0, 2.0, 1.0]))
    drawn = WORDS.slice(5, 8).reshape(2, 4)
    stays = drawn >= odds.below[ranks]
    assert 0 < np.count_nonzero(stays) < 8
    found = thinned(values, odds, start=5)
    assert np.array_equal(found.values.numpy(), values.numpy() * np.where(stays, odds.factors[ranks], 0))
    assert np.array_equal(found.stays, stays.reshape(-1))
    assert totals(found.sums) == (7.75, float(found.values.abs().sum()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_chunks_do_not_matter_to_a_single_bit(library: str, dtype: torch.dtype) -> None:
    values = normal(12, 37).to(dtype)
    for odds in (alike(), ranked(37)):
        whole = thinned(values, odds)
        for heights in ([1] * 12, [5, 7], [11, 1]):
            assert same(thinned(values, odds, heights=heights), whole)


def test_totals_are_the_norms(library: str) -> None:
    values = normal(50, 41)
    found = thinned(values, alike(), start=3)
    before, after = totals(found.sums)
    assert before == pytest.approx(values.double().abs().sum().item(), rel=1e-14)
    assert after == pytest.approx(found.values.double().abs().sum().item(), rel=1e-14)


def test_words_of_the_kernel_are_numpys(library: str) -> None:
    """Thresholds one by one: an entry stays at its own word and not above."""
    for start in (0, 3, 1000):
        for position, word in enumerate(WORDS.slice(start, 40).tolist()):
            for threshold, expected in ((word, 1), (word + 1, 0)):
                stays = np.empty(1, np.uint8)
                odds = Odds(np.array([threshold], np.uint64), np.ones(1))
                thin(torch.ones(1), WORDS, start + position, odds, stays=stays)
                assert stays[0] == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeping_what_stays(library: str, dtype: torch.dtype) -> None:
    values = normal(3, 70).to(dtype)
    stays = (np.arange(210) % 3 == 0).astype(np.uint8)
    expected = (values.reshape(-1) * 1.1 * torch.from_numpy(stays)).view(3, 70)
    keep(values, stays, 1.1)
    torch.testing.assert_close(values, expected, rtol=0, atol=0)
