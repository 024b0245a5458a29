"""The allocation of chunks against its formula."""

from __future__ import annotations

import pytest

from optmerge.space.chunks import chunk_counts


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
