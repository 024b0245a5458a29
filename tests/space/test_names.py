"""Names that are made when they are asked for."""

from __future__ import annotations

import pytest

from optmerge.space.names import VariableNames, slices_name

COMPACT = [
    "embedding/a",
    f"{slices_name('up.weight', 3)}/a",
    f"{slices_name('up.weight', 3)}/ties[density=0.5]",
    "model",
]
NAMES = [
    "embedding/a",
    *(f"up.weight[{i}]/a" for i in range(3)),
    *(f"up.weight[{i}]/ties[density=0.5]" for i in range(3)),
    "model",
]


def test_they_are_a_sequence() -> None:
    names = VariableNames(COMPACT)
    assert len(names) == len(NAMES)
    assert list(names) == [names[i] for i in range(len(NAMES))] == NAMES
    assert names[-2] == NAMES[-2]
    assert names[2:5] == NAMES[2:5]
    with pytest.raises(IndexError, match="no variable 8 among 8"):
        names[8]
    assert len(VariableNames([])) == 0


def test_spans_are_tensors_and_directions() -> None:
    assert list(VariableNames(COMPACT).spans()) == [
        ("embedding/a", slice(0, 1)),
        ("up.weight/a", slice(1, 4)),
        ("up.weight/ties[density=0.5]", slice(4, 7)),
        ("model", slice(7, 8)),
    ]


def test_two_of_the_same_name_are_found() -> None:
    assert VariableNames(COMPACT).distinct
    assert not VariableNames([*COMPACT, "model"]).distinct


def test_a_direction_may_be_called_like_slices() -> None:
    names = VariableNames(["layer.0/x[0:3]", f"{slices_name('up.weight', 2)}/x[0:3]"])
    assert list(names) == ["layer.0/x[0:3]", "up.weight[0]/x[0:3]", "up.weight[1]/x[0:3]"]
