"""The k largest magnitudes, against a stable sort."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from optmerge.errors import ModelError
from optmerge.merging.methods import selection
from optmerge.merging.methods.selection import Threshold, largest

Values = NDArray[np.floating]


@dataclass
class Stored:
    values: Values
    size: int = 64

    def chunks(self) -> Iterator[Values]:
        for start in range(0, len(self.values), self.size):
            yield self.values[start : start + self.size]

    def sample(self, stride: int) -> Values:
        return self.values[::stride]


def kept_by(parts: list[Values], thresholds: list[Threshold]) -> list[list[bool]]:
    kept = []
    for part, threshold in zip(parts, thresholds, strict=True):
        left, mask = threshold.ties, []
        for value in np.abs(part):
            tied = bool(value == threshold.above) and left > 0
            left -= tied
            mask.append(tied or bool(value > threshold.above))
        kept.append(mask)
    return kept


def expected(parts: list[Values], keep: int) -> list[list[bool]]:
    together = np.abs(np.concatenate(parts))
    mask = np.zeros(len(together), bool)
    mask[np.argsort(-together, kind="stable")[:keep]] = True
    return [half.tolist() for half in np.split(mask, np.cumsum([len(part) for part in parts])[:-1])]


def check(parts: list[Values], keep: int) -> None:
    thresholds = largest([Stored(part) for part in parts], sum(map(len, parts)), keep)
    assert kept_by(parts, thresholds) == expected(parts, keep)


@given(st.lists(st.lists(st.integers(-3, 3), max_size=12), min_size=1, max_size=4), st.integers(0, 40))
def test_small_parts_with_many_ties(parts: list[list[int]], keep: int) -> None:
    check([np.array(part, np.float32) for part in parts], keep)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("share", [0.0, 1e-4, 0.2, 0.5, 0.999, 1.0])
def test_sampled_bracket(dtype: type[np.floating], share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "_WHOLE", 100)
    generator = np.random.default_rng(0)
    parts = [(scale * generator.standard_normal(size)).astype(dtype) for scale, size in ((1, 9000), (5, 700), (1, 1))]
    check(parts, round(share * sum(map(len, parts))))


@pytest.mark.parametrize("levels", [1, 2, 5, 40])
@pytest.mark.parametrize("keep", [1, 2000, 5000, 9999])
def test_sampled_bracket_on_ties(levels: int, keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "_WHOLE", 100)
    generator = np.random.default_rng(levels)
    values = generator.integers(0, levels, 10000).astype(np.float32)
    check([values[:4000], values[4000:]], keep)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.99))
def test_a_sample_that_misleads(seed: int, share: float) -> None:
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(70_000).astype(np.float32)
    values[::61] = 1000.0 * generator.integers(0, 2)  # just what the sample sees
    check([values], round(share * len(values)))


def test_everything_and_nothing() -> None:
    part = Stored(np.zeros(4, np.float32))
    assert largest([part, part], 8, 8) == [Threshold(-math.inf, 0)] * 2
    assert largest([part], 4, 0) == [Threshold(math.inf, 0)]


def test_nan_is_refused() -> None:
    with pytest.raises(ModelError, match="NaN"):
        largest([Stored(np.array([1.0, np.nan, np.nan], np.float32))], 3, 2)
