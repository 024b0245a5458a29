"""The allocation of chunks against its formula, and where tensors are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optmerge.merging.slices import even_chunks
from optmerge.space.chunks import chunk_counts, weighted_chunks


@pytest.mark.parametrize(
    ("power", "expected"),
    [(1.0, {"a": 6, "b": 3, "c": 0}), (0.0, {"a": 3, "b": 3, "c": 3}), (0.5, {"a": 4, "b": 3, "c": 1})],
)
def test_the_formula(power: float, expected: dict[str, int]) -> None:
    assert chunk_counts({"a": 60.0, "b": 31.0, "c": 9.0}, total=10, power=power) == expected


def test_scale_does_not_matter_and_nothing_important_gets_nothing() -> None:
    small = chunk_counts({"a": 6e-9, "b": 4e-9}, total=10, power=1.0)
    assert small == {"a": 6, "b": 4}
    assert chunk_counts({"a": 0.0}, total=10, power=1.0) == {"a": 0}


@given(profile=st.lists(st.floats(0, 10), min_size=2, max_size=16), count=st.integers(2, 12))
def test_weighted_chunks_tile_the_tensor(profile: list[float], count: int) -> None:
    cut = weighted_chunks((32, 3), profile, count)
    assert cut is not None
    assert cut.count == count
    assert (cut.bounds[0], cut.bounds[-1]) == (0, 96)
    assert list(cut.bounds) == sorted(set(cut.bounds))
    assert all(bound % 3 == 0 for bound in cut.bounds)


def test_weighted_chunks_are_equally_important() -> None:
    cut = weighted_chunks((16, 4), [8.0, 0.0, 4.0, 4.0, 2.0, 2.0, 2.0, 2.0], 3)
    assert cut is not None
    assert cut.bounds == (0, 8, 32, 64)  # 8, 8 and 8
    flat = weighted_chunks((16, 4), [1.0] * 8, 4)
    assert flat == even_chunks((16, 4), 4)
