"""`writing` for parameters that are cut into groups: a coefficient for every column, row or chunk.

    write_sliced(out, segment, cut, [values_of_a, None, values_of_c], workspace)
    contract_sliced(gradient, segment, cut, [0, 2], into, workspace)     # into[g, k] += <gradient_g, delta_k,g>

The order of accumulation is that of `writing`: acc = sum_k fl(c_k * fl(theta_k - theta_0)), with the c_k of an
element's group. A parameter whose groups are all alike is to be written by `writing.write_merge`, which gives the same
bits, and copies the base and experts exactly.

Nothing is done group by group: dense deltas are multiplied matrix by matrix, and of a low-rank delta b @ a the factor
on the side of the groups is scaled, which is exact: (b @ a) * c = b @ (a * c) for columns, (c * b) @ a for rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from optmerge.merging.low_rank import add_low_rank
from optmerge.merging.slices import Columns, Cut
from optmerge.merging.sources import LowRank, Segment, Source
from optmerge.merging.writing import LOW_RANK_CHUNK, Workspace, precise, read_delta, row_chunks

Values = Sequence[torch.Tensor | None]
"""Per direction its coefficients [groups of the parameter], in the accumulating type; None where all are zero."""


@torch.no_grad()
def write_sliced(out: torch.Tensor, segment: Segment, cut: Cut, values: Values, workspace: Workspace) -> None:
    """Out <- base + sum of coefficient * delta, in place.

    Args:
        out: On the workspace's device, of the segment's shape; any floating dtype.
        segment: The base and D sources; a part of a parameter that ``cut`` is of.
        cut: Which group an element is in.
        values: D entries.
        workspace: Buffers on ``out``'s device.
    """
    for run in segment.runs():
        _write_run(out[run.index], run, cut, values, workspace)


@torch.no_grad()
def contract_sliced(
    gradient: torch.Tensor,
    segment: Segment,
    cut: Cut,
    columns: Sequence[int],
    into: torch.Tensor,
    workspace: Workspace,
) -> None:
    """into[g, k] += <gradient, delta_k> over the elements of group g, for the directions in ``columns``.

    Args:
        gradient: dL/dW of the segment, on the workspace's device.
        segment: The base and D sources; a part of a parameter that ``cut`` is of.
        cut: Which group an element is in.
        columns: Which directions are wanted.
        into: [groups of the parameter, D] on the gradient's device, fp64 (fp32 where the device has no fp64).
        workspace: Buffers on that device.
    """
    for run in segment.runs():
        dense: list[tuple[int, Source]] = []
        for column in columns:
            source = run.sources[column]
            if isinstance(source, LowRank):
                _contract_low_rank(gradient[run.index], run, cut, source, into[:, column], workspace)
            elif source is not None:
                dense.append((column, source))
        if dense:
            _contract_dense(gradient[run.index], run, cut, dense, into, workspace)


def _write_run(out: torch.Tensor, run: Segment, cut: Cut, values: Values, workspace: Workspace) -> None:
    dense: list[tuple[Source, torch.Tensor | None]] = []
    low: list[tuple[LowRank, torch.Tensor]] = []
    for source, mine in zip(run.sources, values, strict=True):
        if mine is not None and isinstance(source, LowRank):
            low.append((source, mine))
        elif mine is not None and isinstance(source, Source):
            dense.append((source, mine))
    if not dense and not low:
        out.copy_(run.base, non_blocking=True)
        return
    if not low:
        _write_dense(out, run.base, run.offset, cut, dense, workspace)
        return
    scaled = [(_scaled(source, run, cut, mine), 1.0) for source, mine in low]
    for lo, hi in row_chunks(run.base.shape, LOW_RANK_CHUNK):
        part = run.rows(lo, hi)
        product = workspace.product(part.base.numel()).view(part.base.shape).zero_()
        add_low_rank(product, [(source.rows(lo, hi), one) for source, one in scaled], workspace.factors)
        several = [*((source.rows(lo, hi), mine) for source, mine in dense), (Source(product, absolute=False), None)]
        _write_dense(out[lo:hi], part.base, part.offset, cut, several, workspace)


def _write_dense(
    out: torch.Tensor,
    base: torch.Tensor,
    offset: int,
    cut: Cut,
    active: Sequence[tuple[Source, torch.Tensor | None]],
    workspace: Workspace,
) -> None:
    """The dense sources with their coefficients; None as coefficients is 1 for every element."""
    target = out if out.is_contiguous() else torch.empty_like(out, memory_format=torch.contiguous_format)
    flat_out, flat_base = target.view(-1), base.reshape(-1)
    flat = [(source.tensor.reshape(-1), source.absolute, mine) for source, mine in active]
    for piece in cut.pieces(offset, offset + flat_out.numel(), workspace.size):
        lo, hi = piece.lo - offset, piece.hi - offset
        delta, total = workspace.delta[: hi - lo], workspace.total[: hi - lo]
        theta = precise(flat_base[lo:hi], workspace.base[: hi - lo], workspace)
        for position, (tensor, absolute, mine) in enumerate(flat):
            part = delta if position else total
            read_delta(tensor[lo:hi], theta if absolute else None, part, workspace)
            if mine is not None:
                part.view(piece.rows, piece.width).mul_(piece.spread(mine))
            if position:
                total.add_(delta)
        if flat_out.dtype == total.dtype:
            torch.add(total, theta, out=flat_out[lo:hi])
        else:
            flat_out[lo:hi].copy_(total.add_(theta))
    if target is not out:
        out.copy_(target)


def _contract_dense(
    gradient: torch.Tensor,
    run: Segment,
    cut: Cut,
    active: Sequence[tuple[int, Source]],
    into: torch.Tensor,
    workspace: Workspace,
) -> None:
    flat_gradient, flat_base = gradient.reshape(-1), run.base.reshape(-1)
    flat = [(column, source.tensor.reshape(-1), source.absolute) for column, source in active]
    for piece in cut.pieces(run.offset, run.offset + flat_gradient.numel(), workspace.size):
        lo, hi = piece.lo - run.offset, piece.hi - run.offset
        delta = workspace.delta[: hi - lo]
        slope = precise(flat_gradient[lo:hi], workspace.total[: hi - lo], workspace)
        theta = precise(flat_base[lo:hi], workspace.base[: hi - lo], workspace)
        for column, tensor, absolute in flat:
            read_delta(tensor[lo:hi], theta if absolute else None, delta, workspace)
            products = delta.mul_(slope).view(piece.rows, piece.width)
            into[piece.groups, column].add_(products.sum(0 if piece.across else 1))


def _scaled(source: LowRank, run: Segment, cut: Cut, values: torch.Tensor) -> LowRank:
    """The delta with its coefficients in the factor that is on the side of the groups."""
    mine, of_rows = _of_run(run, cut, values)
    if of_rows:
        return LowRank(source.b * mine.view(*source.b.shape[:-1], 1), source.a, source.scaling, source.exact)
    return LowRank(source.b, source.a * mine.view(*source.a.shape[:-2], 1, -1), source.scaling, source.exact)


def _of_run(run: Segment, cut: Cut, values: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """The coefficients of a run of whole rows: one per row (True), or one per column of each of its matrices."""
    rows = _rows_of(run, cut)
    if rows is not None:
        return values[rows.to(values.device)], True
    return values[_columns_of(run, cut)], False


def _rows_of(run: Segment, cut: Cut) -> torch.Tensor | None:
    rows = cut.groups_of_rows(run.offset, run.offset + run.base.numel(), run.base.shape[-1])
    return None if rows is None else torch.from_numpy(rows)


def _columns_of(run: Segment, cut: Cut) -> slice:
    """The groups of the columns of all matrices that a run is made of, or of the one that it is a part of."""
    assert isinstance(cut, Columns)
    assert run.base.shape[-1] == cut.width, "a low-rank delta is a matrix, or a stack of matrices"
    matrices = max(1, run.base.numel() // (run.base.shape[-2] * cut.width))
    first = run.offset // (cut.rows * cut.width)
    return slice(first * cut.width, (first + matrices) * cut.width)


def _contract_low_rank(
    gradient: torch.Tensor, run: Segment, cut: Cut, source: LowRank, into: torch.Tensor, workspace: Workspace
) -> None:
    """<gradient, scaling * b @ a> per group: columns of (b^T G) * a, or rows of (G a^T) * b, summed over the ranks."""
    dtype = workspace.dtype
    m, n = run.base.shape[-2:]
    slopes = gradient.reshape(-1, m, n)
    b, a = (factor.reshape(-1, *factor.shape[-2:]).to(dtype) for factor in (source.b, source.a))
    rows = _rows_of(run, cut)
    step = max(1, LOW_RANK_CHUNK // (slopes.shape[0] * n))
    parts = [slice(lo, lo + step) for lo in range(0, m, step)]
    if rows is None:
        ranks = torch.zeros_like(a)
        for part in parts:
            ranks.baddbmm_(b[:, part].mT, slopes[:, part].to(dtype))
        sums = ranks.mul_(a).sum(1).mul_(source.scaling)
        into[_columns_of(run, cut)].add_(sums.view(-1))
        return
    sums = torch.cat([torch.bmm(slopes[:, part].to(dtype), a.mT).mul_(b[:, part]).sum(2) for part in parts], dim=1)
    into.index_add_(0, rows.to(into.device), sums.mul_(source.scaling).view(-1).to(into.dtype))
