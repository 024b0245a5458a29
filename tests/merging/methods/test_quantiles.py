"""Values at ranks of streams that are read together, against sorting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optmerge.errors import ModelError
from optmerge.merging.methods.quantiles import values_at_ranks
from optmerge.merging.methods.selection import Values

FLOATS = st.one_of(
    st.integers(-2, 2).map(float), st.floats(width=32, allow_nan=False), st.sampled_from([0.0, -0.0, 1e-45, -1e-45])
)


def chunked(streams: Sequence[Values], size: int) -> Iterator[Sequence[Values]]:
    for start in range(0, len(streams[0]), size):
        yield [stream[start : start + size] for stream in streams]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=50), st.integers(1, 20))
def test_every_rank(dtype: type[np.float32], pairs: list[tuple[float, float]], size: int) -> None:
    streams = [np.array(column, dtype) for column in zip(*pairs, strict=True)]
    ranks = list(range(1, len(pairs) + 1))
    found = values_at_ranks(lambda: chunked(streams, size), [ranks, ranks[::-1]], dtype)
    assert found[0] == sorted(streams[0].tolist(), reverse=True)
    assert found[1] == sorted(streams[1].tolist())


def test_each_stream_has_ranks_of_its_own() -> None:
    generator = np.random.default_rng(0)
    streams = [generator.standard_normal(10_000).astype("f4") ** power for power in (1, 3)]
    found = values_at_ranks(lambda: chunked(streams, 999), [[], [1, 5000, 5000, 10_000]], np.float32)
    ordered = np.sort(streams[1])[::-1]
    assert found == [[], [float(ordered[rank - 1]) for rank in (1, 5000, 5000, 10_000)]]


def test_wider_numbers_are_told_apart() -> None:
    close = np.array([1.0, 1.0 + 2**-52, 1.0 + 2**-51])
    assert values_at_ranks(lambda: chunked([close], 3), [[2]], np.float64) == [[1.0 + 2**-52]]
    mixed = [close, close[:1].astype("f4")]
    assert values_at_ranks(lambda: iter([[part] for part in mixed]), [[4]], np.float64) == [[1.0]]


def test_passes() -> None:
    passes = 0

    def read() -> Iterator[Sequence[Values]]:
        nonlocal passes
        passes += 1
        yield [np.ones(5, "f4")]

    assert values_at_ranks(read, [[3]], np.float32) == [[1.0]]
    assert passes == 2


def test_nan() -> None:
    with pytest.raises(ModelError, match="holds NaN"):
        values_at_ranks(lambda: iter([[np.array([np.nan], "f4")]]), [[1]], np.float32)
