"""The compiled kernels for slices against torch's operations: the same bits of a merge, the same sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from optmerge.merging import kernels, sliced_batch
from optmerge.merging.sliced import contract_sliced, write_sliced
from optmerge.merging.sliced_batch import SlicedBatch
from optmerge.merging.slices import Chunks, Columns, Cut, Rows
from optmerge.merging.sources import LowRank, Segment, Source, placed
from optmerge.merging.writing import Workspace

TYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES: dict[str, tuple[tuple[int, ...], Cut]] = {
    "columns": ((37, 2300), Columns(1, 37, 2300)),
    "rows": ((41, 530), Rows(41, 530)),
    "chunks": ((50, 60), Chunks((0, 60, 1800, 3000))),
    "stacked": ((3, 20, 33), Columns(3, 20, 33)),
    "gain": ((77,), Columns(1, 1, 77)),
}
DIRECTIONS = 11  # more than a strip's kernel takes at once


def normal(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def segments_of(name: str) -> list[Segment]:
    """Sources of all types, absolute or not, one of them missing; "stacked" lies in two boxes of each matrix."""
    shape, _ = SHAPES[name]
    base = normal(shape, 0, TYPES[len(name) % 3])
    sources: list[Source | None] = [
        Source(normal(shape, 1 + k, TYPES[k % 3]), absolute=k % 4 != 1) for k in range(DIRECTIONS)
    ]
    sources[2] = None
    if name != "stacked":
        return [Segment((), base, tuple(sources))]
    boxes = [(slice(0, 3), slice(0, 8)), (slice(0, 3), slice(8, 20))]
    return [
        placed(Segment(box, base[box], tuple(s and Source(s.tensor[box], s.absolute) for s in sources)), shape)
        for box in boxes
    ]


@pytest.fixture
def library() -> kernels.Library:
    found = kernels.compiled()
    assert found is not None, "these tests need a C compiler"
    return found


def first_rows() -> dict[str, int]:
    ends = np.cumsum([cut.count for _, cut in SHAPES.values()])
    return {name: int(end) - cut.count for (name, (_, cut)), end in zip(SHAPES.items(), ends, strict=True)}


def made(library: kernels.Library, out: torch.dtype, columns: list[int] | None = None) -> tuple[SlicedBatch, dict]:  # type: ignore[type-arg]
    parameters = {
        name: nn.Parameter(torch.zeros(shape, dtype=out), requires_grad=False) for name, (shape, _) in SHAPES.items()
    }
    cuts = {name: cut for name, (_, cut) in SHAPES.items()}
    held = {name: segments_of(name) for name in SHAPES}
    batch = SlicedBatch(library, parameters, held.__getitem__, first_rows(), cuts, columns=columns)
    return batch, {"parameters": parameters, "segments": held}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("piece", [1 << 18, 700])
def test_a_merge_has_torchs_bits(
    library: kernels.Library, dtype: torch.dtype, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sliced_batch, "PIECE", piece)
    batch, made_of = made(library, dtype)
    first = first_rows()
    table = np.random.default_rng(0).normal(size=(first["gain"] + 77, DIRECTIONS))
    table[:2300, 4] = 0.0  # a direction that a whole tensor leaves out
    table[3, 5] = 0.0
    batch.merge(table, made_of["parameters"])
    for name, (shape, cut) in SHAPES.items():
        assert name in batch
        expected = torch.full(shape, torch.nan, dtype=dtype)
        rows = table[first[name] : first[name] + cut.count]
        values = [torch.from_numpy(column).float() if column.any() else None for column in rows.T]
        for segment in made_of["segments"][name]:
            write_sliced(expected[segment.index], segment, cut, values, Workspace(torch.device("cpu"), torch.float32))
        assert torch.equal(made_of["parameters"][name], expected), name


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("piece", [1 << 18, 700])
def test_contractions_are_torchs_sums(
    library: kernels.Library, dtype: torch.dtype, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sliced_batch, "PIECE", piece)
    columns = [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]
    batch, made_of = made(library, dtype, columns)
    first = first_rows()
    gradients = {name: normal(shape, 99, dtype) for name, (shape, _) in SHAPES.items()}
    results = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        out = torch.ones(first["gain"] + 77, DIRECTIONS, dtype=torch.float64)
        batch.contract(gradients, out)
        results.append(out)
    assert torch.equal(results[0], results[1])
    for name, (_, cut) in SHAPES.items():
        expected = torch.ones(cut.count, DIRECTIONS, dtype=torch.float64)
        for segment in made_of["segments"][name]:
            workspace = Workspace(torch.device("cpu"), torch.float32)
            contract_sliced(gradients[name][segment.index], segment, cut, columns, expected, workspace)
        found = results[0][first[name] : first[name] + cut.count]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
        assert found[:, [2, 4]].eq(1.0).all()


def test_one_parameter_alone(library: kernels.Library) -> None:
    batch, _ = made(library, torch.float32, [0, 3])
    first = first_rows()
    whole, one = (torch.zeros(first["gain"] + 77, DIRECTIONS, dtype=torch.float64) for _ in range(2))
    gradients = {name: normal(shape, 99, torch.float32) for name, (shape, _) in SHAPES.items()}
    batch.contract(gradients, whole)
    batch.contract({"rows": gradients["rows"]}, one)
    rows = slice(first["rows"], first["rows"] + 41)
    assert torch.equal(whole[rows], one[rows])
    assert one.count_nonzero() == 41 * 2
    other, others = made(library, torch.float32)
    other.merge(np.full((first["gain"] + 77, DIRECTIONS), 0.3), {"rows": others["parameters"]["rows"]})
    assert others["parameters"]["rows"].any()
    assert not others["parameters"]["columns"].any()


def test_what_the_kernels_cannot_do_is_left_to_torch(library: kernels.Library) -> None:
    base = torch.zeros(4, 6)
    parameters = {name: nn.Parameter(torch.zeros(4, 6)) for name in ("low", "temporary", "double")}
    low = LowRank(torch.zeros(4, 1), torch.zeros(1, 6), 1.0, lambda: base)
    segments = {
        "low": [Segment((), base, (low,))],
        "temporary": [Segment((), base, (Source(base, absolute=True),), temporary=True)],
        "double": [Segment((), base, (Source(base.double(), absolute=True),))],
    }
    cuts: dict[str, Cut] = dict.fromkeys(segments, Columns(1, 4, 6))
    rows = {"low": 0, "temporary": 6, "double": 12}
    batch = SlicedBatch(library, parameters, segments.__getitem__, rows, cuts)
    assert not any(name in batch for name in segments)
    batch.merge(np.ones((18, 1)), {name: p.data for name, p in parameters.items()})
    batch.contract({}, torch.zeros(18, 1, dtype=torch.float64))
    without = SlicedBatch(None, parameters, segments.__getitem__, rows, cuts)
    assert "double" not in without
