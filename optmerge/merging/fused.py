"""The fused kernels of a CUDA device: what they take, how they are launched, and whether they can be trusted.

    kernels = Fused(torch.device("cuda", 0))      # compiles and checks them; raises what went wrong
    if kernels.takes(out, base, sources):
        kernels.merge(out, base, sources, [0.3, 0.5])
        kernels.contract(gradient, base, sources, [0, 1], into)

One launch does the merge of a whole segment, and a few do its contraction, however many directions there are; nothing
waits for the device. Everything is queued on torch's current stream.

The kernels (`fused_kernels`) are tested with Triton's interpreter and compiled for several generations of devices, but
whether a device and its driver give torch's bits shows only there. Hence the self-check at the first use on a device.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from optmerge.merging.sources import Source

TYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST = 64  # sources of one launch, whose pointers and coefficients are its arguments
MERGE_BLOCK = 1024  # elements of one program: 16 bytes of bf16 for each of 128 threads
CONTRACT_BLOCK = 4096  # more, because every program leaves a partial sum for each source
CHECKED = 3 * CONTRACT_BLOCK + 5  # elements of a self-check: whole blocks and a rest
TOLERANCE = 1e-5  # of a contraction, relative to the sum of the products' magnitudes


class Fused:
    """The kernels on one device, checked.

    Args:
        device: A CUDA device. (Under Triton's interpreter, the CPU.)

    Raises:
        Exception: Whatever importing Triton, compiling, or launching raises.
        ArithmeticError: The kernels run, and their results are not torch's.
    """

    def __init__(self, device: torch.device) -> None:
        from optmerge.merging import fused_kernels

        self._kernels = fused_kernels
        self.device = torch.empty(0, device=device).device  # "cuda" is then cuda:0, as tensors say it
        self._partials = torch.empty(0, device=self.device)
        self._positions: dict[tuple[int, ...], torch.Tensor] = {}
        self_check(self)

    def takes(self, out: torch.Tensor, base: torch.Tensor, sources: Sequence[Source]) -> bool:
        """Whether the kernels can do this segment: contiguous tensors on the device, of types that they know."""
        return 0 < len(sources) <= MOST and all(
            tensor.device == self.device and tensor.dtype in TYPES and tensor.is_contiguous()
            for tensor in (out, base, *(source.tensor for source in sources))
        )

    def merge(
        self, out: torch.Tensor, base: torch.Tensor, sources: Sequence[Source], coefficients: Sequence[float]
    ) -> None:
        """Out <- base + sum of coefficient * delta, with the bits of torch's operations one after the other.

        Args:
            out: [...].
            base: [...], the same shape; so are the sources.
            sources: D of them, at least one.
            coefficients: D numbers. None should be 0: a source that is not wanted must not be passed.
        """
        length = out.numel()
        if not length:
            return
        tensors = tuple(source.tensor for source in sources)
        numbers = tuple(float(c) for c in coefficients)
        with self._current():
            self._kernels.merge[(_blocks(length, MERGE_BLOCK),)](
                out,
                base,
                tensors,
                numbers,
                length,
                ABSOLUTE=_absolute(sources),
                BLOCK=MERGE_BLOCK,
                num_warps=4,
                enable_fp_fusion=False,
            )

    def contract(
        self,
        gradient: torch.Tensor,
        base: torch.Tensor,
        sources: Sequence[Source],
        columns: Sequence[int],
        into: torch.Tensor,
    ) -> None:
        """into[column] += <gradient, delta>: fp32 within a block, then fp64, in an order that is always the same.

        Args:
            gradient: [...].
            base: [...], the same shape; so are the sources.
            sources: D of them, at least one.
            columns: Where each source's product goes, D different ones.
            into: fp64, on the device.
        """
        length = gradient.numel()
        if not length:
            return
        blocks = _blocks(length, CONTRACT_BLOCK)
        size = len(sources) * blocks
        if self._partials.numel() < size:
            self._partials = torch.empty(size, device=self.device)
        partials = self._partials[:size].view(len(sources), blocks)
        with self._current():
            self._kernels.contract[(blocks,)](
                gradient,
                base,
                tuple(source.tensor for source in sources),
                partials,
                length,
                ABSOLUTE=_absolute(sources),
                BLOCK=CONTRACT_BLOCK,
                num_warps=8,
                enable_fp_fusion=False,
            )
        key = tuple(columns)
        if key not in self._positions:
            self._positions[key] = torch.tensor(key, device=self.device)
        into.index_add_(0, self._positions[key], partials.sum(1, dtype=torch.float64))

    def _current(self) -> AbstractContextManager[object]:
        """Triton launches on the current device, which need not be that of the tensors."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()


def self_check(kernels: Fused) -> None:
    """Compare the kernels with torch's operations on the device: 1, 3 and 9 sources, and all types in all places.

    Raises:
        ArithmeticError: A bit of a merge differs, or a contraction by more than `TOLERANCE`.
    """
    generator = torch.Generator().manual_seed(0)
    for count, shift in itertools.product((1, 3, 9), range(len(TYPES))):
        types = itertools.islice(itertools.cycle(TYPES), shift, None)
        out, base, *values = (
            torch.randn(CHECKED, generator=generator).to(kernels.device, next(types)) for _ in range(2 + count)
        )
        sources = [Source(tensor, absolute=k % 3 != 1) for k, tensor in enumerate(values)]
        coefficients = torch.randn(count, generator=generator).tolist()
        deltas = [s.tensor.float() - base.float() if s.absolute else s.tensor.float() for s in sources]
        products = [out.double() * delta.double() for delta in deltas]
        found = torch.zeros(count, dtype=torch.float64, device=kernels.device)
        kernels.contract(out, base, sources, range(count), found)
        for product, value in zip(products, found.tolist(), strict=True):
            wrong = abs(float(product.sum()) - value) / float(product.abs().sum())
            if not wrong <= TOLERANCE:
                raise ArithmeticError(f"a contraction with {count} sources is off by {wrong:.1e}")
        total = deltas[0] * coefficients[0]
        for delta, c in zip(deltas[1:], coefficients[1:], strict=True):
            total = total + delta * c
        kernels.merge(out, base, sources, coefficients)
        expected = (total + base.float()).to(out.dtype)
        differ = int((out.view(torch.uint8) != expected.view(torch.uint8)).sum())
        if differ:
            raise ArithmeticError(f"{differ} bytes of a merge of {count} sources differ from those that torch gives")


def _absolute(sources: Sequence[Source]) -> int:
    return sum(source.absolute << k for k, source in enumerate(sources))


def _blocks(length: int, block: int) -> int:
    return -(-length // block)
