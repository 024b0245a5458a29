"""LoRA factors as tensors: boxes, bounds, and one pair put together from several."""

from __future__ import annotations

import pytest
import torch

from optmerge.models.lora_factors import LoraFactors, assemble


def _factors(*shape: int, rank: int, scaling: float = 1.5, seed: int = 0) -> LoraFactors:
    generator = torch.Generator().manual_seed(seed)
    *leading, m, n = shape
    return LoraFactors(
        torch.randn(*leading, m, rank, generator=generator, dtype=torch.float64),
        torch.randn(*leading, rank, n, generator=generator, dtype=torch.float64),
        scaling,
    )


def test_a_box_is_that_of_the_product() -> None:
    factors = _factors(3, 6, 5, rank=2)
    index = (slice(1, 2), slice(2, 6), slice(0, 3))
    torch.testing.assert_close(factors.box(index).product(torch.float64), factors.product(torch.float64)[index])
    assert factors.box(()) is factors
    assert factors.shape == (3, 6, 5)


def test_the_bound_holds_and_tells_of_nan() -> None:
    factors = _factors(6, 5, rank=3, scaling=-2.0)
    assert 0 < float(factors.product(torch.float64).abs().max()) <= factors.bound()
    factors.a[1, 2] = float("nan")
    assert not factors.bound() < float("inf")


def test_rows_and_experts_are_put_together() -> None:
    """Two row ranges of two experts of three, with other ranks and scalings."""
    shape = (3, 6, 5)
    parts = [
        ((slice(0, 1), slice(0, 4), slice(0, 5)), _factors(4, 5, rank=2, scaling=0.5, seed=1)),
        ((slice(0, 1), slice(4, 6), slice(0, 5)), _factors(2, 5, rank=1, scaling=2.0, seed=2)),
        ((slice(2, 3), slice(0, 4), slice(0, 5)), _factors(4, 5, rank=1, scaling=3.0, seed=3)),
    ]
    expected = torch.zeros(shape, dtype=torch.float64)
    for index, factors in parts:
        expected[index] = factors.product(torch.float64)
    whole = assemble(shape, parts, dtype=torch.float64)
    assert whole is not None
    assert (whole.b.shape, whole.a.shape) == ((3, 6, 3), (3, 3, 5))
    torch.testing.assert_close(whole.product(torch.float64), expected)


def test_a_matrix_from_row_ranges() -> None:
    top, bottom = _factors(2, 5, rank=2, seed=1), _factors(4, 5, rank=2, seed=2)
    parts = [((slice(0, 2), slice(0, 5)), top), ((slice(2, 6), slice(0, 5)), bottom)]
    whole = assemble((6, 5), parts, dtype=torch.float64)
    assert whole is not None
    expected = torch.cat([top.product(torch.float64), bottom.product(torch.float64)])
    torch.testing.assert_close(whole.product(torch.float64), expected)


@pytest.mark.parametrize(
    "index",
    [(slice(0, 2), slice(0, 6), slice(0, 5)), (slice(0, 1), slice(0, 6), slice(0, 4))],
    ids=["two experts at once", "some columns"],
)
def test_other_boxes_are_not_put_together(index: tuple[slice, ...]) -> None:
    assert assemble((3, 6, 5), [(index, _factors(6, 5, rank=1))], dtype=torch.float64) is None
