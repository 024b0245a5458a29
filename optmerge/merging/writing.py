"""One segment's merge, and one segment's contraction: the arithmetic that engine, export and tests share.

The order of accumulation is part of the contract: acc = sum_k fl(c_k * fl(theta_k - theta_0)) over the dense directions
in their order in fp32, then what the low-rank ones give together, then theta_0 + acc, and one cast at the end. All-zero
coefficients give the base exactly; a one-hot row copies the expert.

    workspace = Workspace(torch.device("cpu"), torch.float32)
    write_merge(out, segment, [0.3, 0.5], workspace)
    contract(gradient, segment, [0, 1], into, workspace)          # into[k] += <gradient, delta_k>

The compiled kernels do the work where they can (`kernels`): in host memory, and on a CUDA device what is there as a
whole. Everywhere else torch does it, in chunks whose buffers are made once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from optmerge.merging.fused import Fused
from optmerge.merging.jobs import JobTable
from optmerge.merging.kernels import Library, compiled, fused
from optmerge.merging.low_rank import FactorScratch, add_low_rank, contract_low_rank
from optmerge.merging.sources import LowRank, Segment, Source
from optmerge.merging.streaming import HostStream

CHUNK = 1 << 15  # elements: three fp32 buffers fit a core's L2 cache, and torch does not wake threads for so few
DEVICE_CHUNK = 1 << 24  # on an accelerator kernels are launched asynchronously, and big ones are better
LOW_RANK_CHUNK = 1 << 22  # elements of a product of factors that exist at a time


class Workspace:
    """Buffers on one device, made once and reused for every parameter.

    Attributes:
        delta: One chunk of a direction's delta, in the accumulating type.
        total: One chunk of the sum.
        base: One chunk of the base.
        library: The compiled kernels, where the device is the CPU and they can be used.
        fused: Those of a CUDA device, likewise.
        host: Brings chunks of mapped tensors to an accelerator.
        factors: Stacked factors of low-rank directions.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        self.size = CHUNK if device.type == "cpu" else DEVICE_CHUNK
        self.delta = torch.empty(self.size, dtype=dtype, device=device)
        self.total = torch.empty(self.size, dtype=dtype, device=device)
        self.base = torch.empty(self.size, dtype=dtype, device=device)
        single = dtype == torch.float32
        self.library: Library | None = compiled() if single and device.type == "cpu" else None
        self.fused: Fused | None = fused(device) if single else None
        self.host = HostStream(device, self.size)
        self.factors = FactorScratch(device, dtype)
        self._product: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held from the start; the first low-rank direction adds `LOW_RANK_CHUNK` values."""
        return 3 * self.size * self.dtype.itemsize + self.host.nbytes

    def product(self, numel: int) -> torch.Tensor:
        """A buffer for ``numel`` values of a product of factors."""
        if self._product is None or self._product.numel() < numel:
            self._product = torch.empty(max(numel, LOW_RANK_CHUNK), dtype=self.dtype, device=self.device)
        return self._product[:numel]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp64 for fp64 weights, fp32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@torch.no_grad()
def write_merge(out: torch.Tensor, segment: Segment, coefficients: Sequence[float], workspace: Workspace) -> None:
    """Out <- base + sum of coefficient * delta, in place.

    Args:
        out: On the workspace's device, of the segment's shape; any floating dtype.
        segment: The base and D sources.
        coefficients: D numbers.
        workspace: Buffers on ``out``'s device.
    """
    pairs = zip(segment.sources, coefficients, strict=True)
    active = [(source, float(c)) for source, c in pairs if source is not None and c != 0.0]
    if not active:
        out.copy_(segment.base, non_blocking=True)
        return
    if len(active) == 1 and active[0][1] == 1.0:
        source = active[0][0]
        if isinstance(source, LowRank):
            out.copy_(source.exact(), non_blocking=True)
            return
        if source.absolute:
            out.copy_(source.tensor, non_blocking=True)
            return
    dense = [(source, c) for source, c in active if isinstance(source, Source)]
    low = [(source, c) for source, c in active if isinstance(source, LowRank)]
    if not low:
        _write_dense(out, segment.base, dense, workspace)
        return
    for lo, hi in row_chunks(segment.base.shape, LOW_RANK_CHUNK):
        part = segment.base[lo:hi]
        product = workspace.product(part.numel()).view(part.shape).zero_()
        add_low_rank(product, [(source.rows(lo, hi), c) for source, c in low], workspace.factors)
        cut = [(source.rows(lo, hi), c) for source, c in dense]
        _write_dense(out[lo:hi], part, [*cut, (Source(product, absolute=False), 1.0)], workspace)


@torch.no_grad()
def contract(
    gradient: torch.Tensor,
    segment: Segment,
    columns: Sequence[int],
    into: torch.Tensor,
    workspace: Workspace,
) -> None:
    """into[k] += <gradient, delta_k> for the directions in ``columns``, without leaving the device.

    Args:
        gradient: dL/dW of the segment, on the workspace's device.
        segment: The base and D sources.
        columns: Which directions are wanted.
        into: [D] on the gradient's device, fp64 (fp32 where the device has no fp64).
        workspace: Buffers on that device.
    """
    dense: list[tuple[int, Source]] = []
    low: list[tuple[int, LowRank]] = []
    for column in columns:
        source = segment.sources[column]
        if isinstance(source, LowRank):
            low.append((column, source))
        elif source is not None:
            dense.append((column, source))
    if low:
        products = contract_low_rank(gradient, [source for _, source in low], workspace.factors)
        for (column, _), product in zip(low, products.to(into.dtype), strict=True):
            into[column].add_(product)
    if dense:
        _contract_dense(gradient, segment.base, dense, into, workspace)


def row_chunks(shape: Sequence[int], elements: int) -> list[tuple[int, int]]:
    """Ranges of rows of the first dimension with about so many elements each, and at least one row."""
    rows = shape[0] if len(shape) else 1
    row = 1
    for size in shape[1:]:
        row *= size
    step = max(1, elements // max(1, row))
    return [(lo, min(lo + step, rows)) for lo in range(0, rows, step)]


def _write_dense(
    out: torch.Tensor, base: torch.Tensor, active: Sequence[tuple[Source, float]], workspace: Workspace
) -> None:
    sources = tuple(source for source, _ in active)
    if workspace.library is not None and JobTable.takes(workspace.library, out, base, sources):
        table = JobTable([(out, base, sources)])
        table.set_coefficients([c for _, c in active])
        workspace.library.merge(table.jobs)
        return
    if workspace.fused is not None and workspace.fused.takes(out, base, sources):
        workspace.fused.merge(out, base, sources, [c for _, c in active])
        return
    target = out if out.is_contiguous() else torch.empty_like(out, memory_format=torch.contiguous_format)
    flat_out, flat_base = target.view(-1), base.reshape(-1)
    flat = [(source.tensor.reshape(-1), source.absolute, c) for source, c in active]
    for lo in range(0, flat_out.numel(), workspace.size):
        hi = min(lo + workspace.size, flat_out.numel())
        delta, total = workspace.delta[: hi - lo], workspace.total[: hi - lo]
        theta = precise(flat_base[lo:hi], workspace.base[: hi - lo], workspace)
        for position, (tensor, absolute, c) in enumerate(flat):
            into = total if position == 0 else delta
            read_delta(tensor[lo:hi], theta if absolute else None, into, workspace)
            into.mul_(c)
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
    base: torch.Tensor,
    active: Sequence[tuple[int, Source]],
    into: torch.Tensor,
    workspace: Workspace,
) -> None:
    sources = tuple(source for _, source in active)
    if workspace.library is not None and JobTable.takes(workspace.library, gradient, base, sources):
        table = JobTable([(gradient, base, sources)])
        sums = workspace.library.contract(table.jobs, len(sources)).sum(axis=0)
        for (column, _), value in zip(active, sums.tolist(), strict=True):
            into[column] += value
        return
    if workspace.fused is not None and workspace.fused.takes(gradient, base, sources):
        workspace.fused.contract(gradient, base, sources, [column for column, _ in active], into)
        return
    flat_gradient, flat_base = gradient.reshape(-1), base.reshape(-1)
    flat = [(column, source.tensor.reshape(-1), source.absolute) for column, source in active]
    for lo in range(0, flat_gradient.numel(), workspace.size):
        hi = min(lo + workspace.size, flat_gradient.numel())
        delta = workspace.delta[: hi - lo]
        slope = precise(flat_gradient[lo:hi], workspace.total[: hi - lo], workspace)
        theta = precise(flat_base[lo:hi], workspace.base[: hi - lo], workspace)
        for column, tensor, absolute in flat:
            read_delta(tensor[lo:hi], theta if absolute else None, delta, workspace)
            into[column].add_(torch.dot(slope, delta))


def precise(chunk: torch.Tensor, buffer: torch.Tensor, workspace: Workspace) -> torch.Tensor:
    """The chunk in the buffer's dtype and device: itself when it is so already, else copied into the buffer."""
    if chunk.dtype == buffer.dtype and chunk.device == buffer.device:
        return chunk
    return buffer.copy_(workspace.host.fetch(chunk))


def read_delta(chunk: torch.Tensor, theta: torch.Tensor | None, out: torch.Tensor, workspace: Workspace) -> None:
    """Out <- chunk - theta, or the chunk itself when it is a delta already."""
    here = workspace.host.fetch(chunk)
    if theta is not None and here.dtype == out.dtype:
        torch.sub(here, theta, out=out)
        return
    out.copy_(here)
    if theta is not None:
        out.sub_(theta)
