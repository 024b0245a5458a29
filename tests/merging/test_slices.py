"""Cuts: every element in exactly one group, the same one whatever range is asked about."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optmerge.merging.slices import Chunks, Columns, Cut, Rows, cut_from_dict, even_chunks, input_cut

CUTS: list[Cut] = [Columns(1, 5, 7), Columns(3, 2, 4), Columns(1, 1, 9), Rows(6, 5), Chunks((0, 3, 4, 20))]


def group_of_element(cut: Cut) -> list[int]:
    """The definition, element by element."""
    match cut:
        case Columns(matrices, rows, width):
            return [m * width + c for m in range(matrices) for _ in range(rows) for c in range(width)]
        case Rows(count, width):
            return [row for row in range(count) for _ in range(width)]
        case Chunks(bounds):
            return [g for g in range(len(bounds) - 1) for _ in range(bounds[g], bounds[g + 1])]


@pytest.mark.parametrize("cut", CUTS, ids=str)
@given(data=st.data())
def test_pieces_are_the_definition(cut: Cut, data: st.DataObject) -> None:
    lo = data.draw(st.integers(0, cut.numel))
    hi = data.draw(st.integers(lo, cut.numel))
    most = data.draw(st.integers(1, cut.numel + 3))
    found = []
    numbers = torch.arange(cut.count)
    at = lo
    for piece in cut.pieces(lo, hi, most):
        assert piece.lo == at
        assert piece.rows * piece.width == piece.hi - piece.lo <= most
        found += piece.spread(numbers).expand(piece.rows, piece.width).reshape(-1).tolist()
        at = piece.hi
    assert found == group_of_element(cut)[lo:hi]


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_sizes_and_the_form_in_a_file(cut: Cut) -> None:
    assert cut.sizes().tolist() == np.bincount(group_of_element(cut), minlength=cut.count).tolist()
    assert cut_from_dict(cut.to_dict()) == cut


def test_groups_of_whole_rows() -> None:
    assert Rows(6, 5).groups_of_rows(10, 25, 5).tolist() == [2, 3, 4]
    assert Chunks((0, 4, 12)).groups_of_rows(2, 10, 2).tolist() == [0, 1, 1, 1]
    assert Columns(1, 5, 7).groups_of_rows(0, 35, 7) is None


@pytest.mark.parametrize(
    ("shape", "input_first", "bias", "expected"),
    [
        ((3072, 768), False, False, Columns(1, 3072, 768)),
        ((768, 3072), True, False, Rows(768, 3072)),
        ((8, 64, 32), False, False, Columns(8, 64, 32)),
        ((8, 32, 64), True, False, Rows(8 * 32, 64)),
        ((96, 3, 4, 4), False, False, Columns(1, 96, 48)),
        ((768,), False, False, Columns(1, 1, 768)),
        ((768,), False, True, None),
        ((1,), False, False, None),
        ((), False, False, None),
    ],
)
def test_one_group_per_input(shape: tuple[int, ...], input_first: bool, bias: bool, expected: Cut | None) -> None:
    assert input_cut(shape, input_first=input_first, bias=bias) == expected


def test_chunks_are_whole_rows_of_about_equal_number() -> None:
    assert even_chunks((10, 4), 3) == Chunks((0, 12, 24, 40))
    assert even_chunks((3, 4), 9) == Chunks((0, 4, 8, 12))
    assert even_chunks((5,), 2) == Chunks((0, 2, 5))
    assert even_chunks((10, 4), 1) is None
    assert even_chunks((), 4) is None


@pytest.mark.parametrize(
    "body", [{}, {"rows": 3}, {"rows": 0, "width": 4}, {"chunks": [0, 5, 5]}, {"chunks": [1, 5]}, {"chunks": 3}]
)
def test_what_is_no_cut_is_refused(body: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"whole numbers|expected the keys"):
        cut_from_dict(body)
