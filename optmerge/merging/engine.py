"""The engine: writes coefficients into the resident model, and contracts weight gradients into coefficient gradients.

Both go through the parameters in chunks that stay in cache. No state dict is built and nothing is allocated per
candidate beyond the chunk buffers, which are made once. The order of accumulation is part of the contract:
acc = sum_k fl(c_k * fl(theta_k - theta_0)) in direction order in fp32, then theta_0 + acc, one cast at the end;
all-zero coefficients give the base exactly; a one-hot row copies the expert.

    engine = Engine(parameters, base, sources, group_of, dtype)
    engine.apply(table)                      # float64[G, D]
    with engine.gradient() as gradient:
        loss.backward()                      # any number of times
    table_gradient = gradient.table()        # float64[G, D]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from torch import nn

from optmerge.merging.coefficients import Table
from optmerge.merging.deltas import Source

CHUNK = (
    1 << 15
)  # elements: three fp32 buffers fit a core's L2 cache, and torch runs such an operation without waking threads
DEVICE_CHUNK = 1 << 24  # on an accelerator kernels are launched asynchronously, and big ones are better


class ChunkBuffers:
    """Two chunk-sized fp32 (or fp64) buffers on one device, reused for every parameter."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.size = CHUNK if device.type == "cpu" else DEVICE_CHUNK
        self.delta = torch.empty(self.size, dtype=dtype, device=device)
        self.total = torch.empty(self.size, dtype=dtype, device=device)
        self.base = torch.empty(self.size, dtype=dtype, device=device)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp64 for fp64 weights, fp32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def write_merge(
    out: torch.Tensor,
    base: torch.Tensor,
    sources: Sequence[Source],
    coefficients: Sequence[float],
    buffers: ChunkBuffers,
) -> None:
    """Out <- base + sum of coefficient * delta, in place, in the order that the design fixes.

    Args:
        out: Contiguous, on the buffers' device; any floating dtype.
        base: Same shape as ``out``; any floating dtype.
        sources: D deltas of the same shape.
        coefficients: D numbers.
        buffers: Chunk buffers on ``out``'s device.
    """
    one_hot = _copied_source(sources, coefficients)
    if one_hot is not None or not any(coefficients):
        out.copy_(base if one_hot is None else one_hot, non_blocking=True)
        return
    active = [(source, float(c)) for source, c in zip(sources, coefficients, strict=True) if c != 0.0]
    flat_out, flat_base = out.view(-1), base.reshape(-1)
    flat = [(source.tensor.reshape(-1), source.absolute, c) for source, c in active]
    for lo in range(0, flat_out.numel(), buffers.size):
        hi = min(lo + buffers.size, flat_out.numel())
        delta, total = buffers.delta[: hi - lo], buffers.total[: hi - lo]
        theta = _precise(flat_base[lo:hi], buffers.base[: hi - lo])
        for position, (tensor, absolute, c) in enumerate(flat):
            target = total if position == 0 else delta
            _delta(tensor[lo:hi], theta if absolute else None, target)
            target.mul_(c)
            if position:
                total.add_(delta)
        if flat_out.dtype == total.dtype:
            torch.add(total, theta, out=flat_out[lo:hi])
        else:
            flat_out[lo:hi].copy_(total.add_(theta))


def _precise(chunk: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
    """The chunk in the buffer's dtype and device: itself when it is so already, else copied into the buffer."""
    if chunk.dtype == buffer.dtype and chunk.device == buffer.device:
        return chunk
    return buffer.copy_(chunk, non_blocking=True)


def _delta(chunk: torch.Tensor, theta: torch.Tensor | None, out: torch.Tensor) -> None:
    """Out <- chunk - theta, or the chunk itself when it is a delta already."""
    if theta is not None and chunk.dtype == out.dtype and chunk.device == out.device:
        torch.sub(chunk, theta, out=out)
        return
    out.copy_(chunk, non_blocking=True)
    if theta is not None:
        out.sub_(theta)


def _copied_source(sources: Sequence[Source], coefficients: Sequence[float]) -> torch.Tensor | None:
    hot = [index for index, c in enumerate(coefficients) if c != 0.0]
    if len(hot) == 1 and coefficients[hot[0]] == 1.0 and sources[hot[0]].absolute:
        return sources[hot[0]].tensor
    return None


def contract(
    gradient: torch.Tensor,
    base: torch.Tensor,
    sources: Sequence[Source],
    out: torch.Tensor,
    buffers: ChunkBuffers,
    columns: Sequence[int],
) -> None:
    """out[d] += <gradient, delta_d> for the directions in ``columns``, without leaving the device.

    Args:
        gradient: dL/dW of one parameter.
        base: The base's value of it.
        sources: D deltas of the same shape.
        out: [D] on the gradient's device, fp64 (fp32 where the device has no fp64).
        buffers: Chunk buffers on the gradient's device.
        columns: Which directions are wanted.
    """
    flat_gradient, flat_base = gradient.reshape(-1), base.reshape(-1)
    flat = [(d, sources[d].tensor.reshape(-1), sources[d].absolute) for d in columns]
    for lo in range(0, flat_gradient.numel(), buffers.size):
        hi = min(lo + buffers.size, flat_gradient.numel())
        delta = buffers.delta[: hi - lo]
        slope = _precise(flat_gradient[lo:hi], buffers.total[: hi - lo])
        theta = _precise(flat_base[lo:hi], buffers.base[: hi - lo])
        for direction, tensor, absolute in flat:
            _delta(tensor[lo:hi], theta if absolute else None, delta)
            out[direction].add_(torch.dot(slope, delta))


class Engine:
    """Applies coefficients to resident parameters and turns their gradients into coefficient gradients.

    Args:
        parameters: The resident parameters by name; tied ones once.
        base: Name -> the base's value, CPU or device, module layout.
        sources: Name -> its D deltas.
        group_of: Name -> row of the coefficient table.
        form: How gradients are gathered: "accumulate" keeps one model-sized gradient and contracts it once;
            "hooks" contracts each parameter's gradient as soon as it is whole in every backward pass and drops it.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        base: Callable[[str], torch.Tensor],
        sources: Callable[[str], list[Source]],
        group_of: Mapping[str, int],
        *,
        form: Literal["accumulate", "hooks"] = "accumulate",
    ) -> None:
        self.parameters = dict(parameters)
        self.group_of = dict(group_of)
        self.form = form
        self._base = base
        self._sources = sources
        first = next(iter(self.parameters.values()))
        self.device = first.device
        self.accumulate = accumulation_dtype(first.dtype)
        self.buffers = ChunkBuffers(self.device, self.accumulate)
        self._resident: dict[str, tuple[float, ...]] = {}  # what each parameter currently holds

    @property
    def num_groups(self) -> int:
        """Rows of the coefficient table."""
        return max(self.group_of.values()) + 1

    @property
    def num_directions(self) -> int:
        """Columns of the coefficient table."""
        return len(self._sources(next(iter(self.parameters))))

    @torch.no_grad()
    def apply(self, table: Table) -> int:
        """Write coefficients [G, D] into the resident parameters; returns how many parameters were rewritten.

        Parameters whose row is the one that they already hold are left alone.
        """
        rows = [tuple(float(c) for c in row) for row in table]
        rewritten = 0
        for name, parameter in self.parameters.items():
            row = rows[self.group_of[name]]
            if self._resident.get(name) == row:
                continue
            self._resident.pop(name, None)  # an exception in the middle leaves the parameter unknown, not wrong
            write_merge(parameter.data, self._base(name), self._sources(name), row, self.buffers)
            self._resident[name] = row
            rewritten += 1
        return rewritten

    def forget(self) -> None:
        """The resident values were changed from outside; the next `apply` rewrites everything."""
        self._resident.clear()

    @contextmanager
    def gradient(
        self, groups: Sequence[int] | None = None, columns: Sequence[int] | None = None
    ) -> Iterator[GradientGatherer]:
        """Gather dL/dW of every backward pass inside the block.

        Only parameters of ``groups`` get gradients, and only the directions ``columns`` are contracted (None: all).

        The objective's total must be the sum of the losses that are back-propagated.
        """
        wanted = set(range(self.num_groups)) if groups is None else set(groups)
        watched = {name: p for name, p in self.parameters.items() if self.group_of[name] in wanted}
        gatherer = GradientGatherer(self, watched, range(self.num_directions) if columns is None else columns)
        try:
            yield gatherer
            gatherer.close(complete=True)
        finally:
            gatherer.close(complete=False)

    def contract_into(self, out: torch.Tensor, name: str, gradient: torch.Tensor, columns: Sequence[int]) -> None:
        """Add one parameter's contribution to ``out`` [G, D]."""
        contract(gradient, self._base(name), self._sources(name), out[self.group_of[name]], self.buffers, columns)


class GradientGatherer:
    """What `Engine.gradient` yields; ``table()`` is dL/dcoefficients once the block has ended."""

    def __init__(self, engine: Engine, watched: dict[str, nn.Parameter], columns: Sequence[int]) -> None:
        self.engine = engine
        self.watched = watched
        self.columns = tuple(columns)
        precise = torch.float64 if engine.device.type != "mps" else torch.float32
        self._out = torch.zeros(engine.num_groups, engine.num_directions, dtype=precise, device=engine.device)
        self._hooks = []
        self._done = False
        for name, parameter in watched.items():
            parameter.requires_grad_(True)
            if parameter.grad is not None:
                parameter.grad.zero_()
            if engine.form == "hooks":
                hook = parameter.register_post_accumulate_grad_hook(self._drop(name))  # type: ignore[no-untyped-call]
                self._hooks.append(hook)

    def table(self) -> Table:
        """dL/dcoefficients, float64[G, D]; the one synchronisation of a gradient evaluation."""
        assert self._done, "the table is whole only after the block has ended"
        result: Table = self._out.to("cpu", torch.float64).numpy()
        return result

    def close(self, *, complete: bool) -> None:
        """End gathering; contracts what was accumulated when the block ended without an exception."""
        if self._done:
            return
        if complete and self.engine.form == "accumulate":
            with torch.no_grad():
                for name, parameter in self.watched.items():
                    if parameter.grad is not None:
                        self.engine.contract_into(self._out, name, parameter.grad, self.columns)
        self._done = True
        for hook in self._hooks:
            hook.remove()
        for parameter in self.watched.values():
            parameter.requires_grad_(False)
            if self.engine.form == "hooks":
                parameter.grad = None

    def _drop(self, name: str) -> Callable[[torch.Tensor], None]:
        def hook(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            with torch.no_grad():
                self.engine.contract_into(self._out, name, parameter.grad, self.columns)
            parameter.grad = None

        return hook


def one_hot(num_groups: int, num_directions: int, direction: int) -> Table:
    """The table [G, D] that makes the resident model one direction's expert."""
    table = np.zeros((num_groups, num_directions))
    table[:, direction] = 1.0
    return table
