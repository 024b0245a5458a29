"""Sliced merges and contractions against the definition, element by element, dense and low-rank."""

from __future__ import annotations

import pytest
import torch

from optmerge.merging.sliced import contract_sliced, write_sliced
from optmerge.merging.slices import Chunks, Columns, Cut, Rows
from optmerge.merging.sources import LowRank, Segment, Source, placed
from optmerge.merging.writing import Workspace

CASES: list[tuple[tuple[int, ...], Cut]] = [
    ((9, 7), Columns(1, 9, 7)),
    ((9, 7), Rows(9, 7)),
    ((9, 7), Chunks((0, 14, 49, 63))),
    ((3, 4, 5), Columns(3, 4, 5)),
    ((3, 4, 5), Rows(12, 5)),
    ((3, 4, 5), Chunks((0, 15, 60))),
    ((11,), Columns(1, 1, 11)),
    ((700, 130), Columns(1, 700, 130)),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float64]
CPU = torch.device("cpu")


def spread(cut: Cut, values: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Every element's coefficient."""
    out = torch.empty(cut.numel, dtype=values.dtype)
    for piece in cut.pieces(0, cut.numel, 1):
        out[piece.lo] = values[piece.first]
    return out.view(shape)


def precision(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def dense_case(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Segment, list[torch.Tensor]]:
    """A segment with two experts, a delta and a direction that leaves it alone; and the deltas."""
    generator = torch.Generator().manual_seed(0)
    base, one, two, delta = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(4))
    sources = (Source(one, absolute=True), None, Source(delta, absolute=False), Source(two, absolute=True))
    wide = precision(dtype)
    deltas = [
        one.to(wide) - base.to(wide),
        torch.zeros(shape, dtype=wide),
        delta.to(wide),
        two.to(wide) - base.to(wide),
    ]
    return Segment((), base, sources), deltas


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "cut"), CASES)
def test_a_merge_has_the_order_of_accumulation_for_every_element(
    shape: tuple[int, ...], cut: Cut, dtype: torch.dtype
) -> None:
    segment, deltas = dense_case(shape, dtype)
    wide = precision(dtype)
    values = torch.randn(4, cut.count, generator=torch.Generator().manual_seed(1), dtype=wide)
    total = torch.zeros(shape, dtype=wide)
    for row, delta in zip(values, deltas, strict=True):
        total = total + spread(cut, row, shape) * delta
    expected = (segment.base.to(wide) + total).to(dtype)
    out = torch.full_like(segment.base, torch.nan)
    write_sliced(out, segment, cut, list(values), Workspace(CPU, wide))
    assert torch.equal(out, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "cut"), CASES)
def test_a_contraction_is_the_scalar_product_of_every_group(
    shape: tuple[int, ...], cut: Cut, dtype: torch.dtype
) -> None:
    segment, deltas = dense_case(shape, dtype)
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    into = torch.zeros(cut.count, 4, dtype=torch.float64)
    contract_sliced(gradient, segment, cut, [0, 2, 3], into, Workspace(CPU, precision(dtype)))
    groups = spread(cut, torch.arange(cut.count), shape).view(-1)
    for column in (0, 2, 3):
        products = (gradient.double() * deltas[column].double()).view(-1)
        expected = torch.zeros(cut.count, dtype=torch.float64).index_add_(0, groups, products)
        torch.testing.assert_close(into[:, column], expected, rtol=1e-5, atol=1e-5)
    assert not into[:, 1].any()


@pytest.mark.parametrize(("shape", "cut"), [case for case in CASES if len(case[0]) > 1])
def test_low_rank_deltas_are_scaled_and_contracted_exactly(shape: tuple[int, ...], cut: Cut) -> None:
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    *lead, m, n = shape
    base, expert = normal(*shape), normal(*shape)
    b, a = normal(*lead, m, 3), normal(*lead, 3, n)
    delta = 0.5 * b @ a
    segment = Segment((), base, (Source(expert, absolute=True), LowRank(b, a, 0.5, lambda: base + delta)))
    values = normal(2, cut.count)
    workspace = Workspace(CPU, torch.float64)
    out = torch.empty_like(base)
    write_sliced(out, segment, cut, list(values), workspace)
    expected = base + spread(cut, values[0], shape) * (expert - base) + spread(cut, values[1], shape) * delta
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    only = torch.empty_like(base)
    write_sliced(only, segment, cut, [None, values[1]], workspace)
    torch.testing.assert_close(only, base + spread(cut, values[1], shape) * delta, rtol=1e-12, atol=1e-12)

    gradient = normal(*shape)
    into = torch.zeros(cut.count, 2, dtype=torch.float64)
    contract_sliced(gradient, segment, cut, [0, 1], into, workspace)
    groups = spread(cut, torch.arange(cut.count), shape).view(-1)
    for column, change in enumerate((expert - base, delta)):
        sums = torch.zeros(cut.count, dtype=torch.float64).index_add_(0, groups, (gradient * change).view(-1))
        torch.testing.assert_close(into[:, column], sums, rtol=1e-11, atol=1e-11)


def test_parts_of_a_parameter_get_the_coefficients_of_their_place() -> None:
    """Stacked matrices that several tensors on disk hold, and rows of one: what a streamed merge asks for."""
    shape = (3, 4, 5)
    segment, _ = dense_case(shape, torch.float32)
    for cut in (Columns(3, 4, 5), Rows(12, 5), Chunks((0, 10, 35, 60))):
        values = torch.randn(4, cut.count, generator=torch.Generator().manual_seed(1))
        workspace = Workspace(CPU, torch.float32)
        whole, pieced = torch.empty(shape), torch.empty(shape)
        write_sliced(whole, segment, cut, list(values), workspace)
        for box in [(slice(0, 3), slice(0, 2)), (slice(0, 3), slice(2, 4), slice(0, 2)), (slice(0, 3), slice(2, 4))]:
            sources = tuple(source.box(box) if isinstance(source, Source) else None for source in segment.sources)
            part = placed(Segment(box, segment.base[box], sources), shape)
            for row in range(3):
                rows = part.rows(row, row + 1)
                write_sliced(pieced[box][rows.index], rows, cut, list(values), workspace)
        assert torch.equal(whole, pieced)


def test_larger_than_a_chunk_equals_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    shape, cut = (20, 50), Columns(1, 20, 50)
    segment, _ = dense_case(shape, torch.float32)
    values = torch.randn(4, cut.count, generator=torch.Generator().manual_seed(1))
    results = []
    for chunk in (1 << 15, 120, 33):
        monkeypatch.setattr("optmerge.merging.writing.CHUNK", chunk)
        out = torch.empty(shape)
        write_sliced(out, segment, cut, list(values), Workspace(CPU, torch.float32))
        results.append(out)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_directions_without_coefficients_leave_the_base() -> None:
    segment, _ = dense_case((9, 7), torch.bfloat16)
    out = torch.empty_like(segment.base)
    write_sliced(out, segment, Columns(1, 9, 7), [None] * 4, Workspace(CPU, torch.float32))
    assert torch.equal(out, segment.base)
