"""Low-rank deltas without their products: added to weights, and contracted with gradients.

All adapters of a parameter are stacked along the rank, so that any number of them costs one matrix product:
sum_k c_k s_k b_k a_k = [c_1 s_1 b_1 ...] [a_1; ...], and <G, s_k b_k a_k> = s_k <b_k^T G, a_k>, whose b^T G has as many
rows as there are ranks. Nothing of the parameter's own size is made.

    add_low_rank(total, [(low_rank, 0.3), (other, 0.7)], scratch)     # total += 0.3 * delta + 0.7 * delta
    contract_low_rank(weight.grad, [low_rank, other], scratch)        # [2]
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from optmerge.merging.sources import LowRank

CHUNK = 1 << 20  # elements of a gradient that are widened at a time
DEVICE_CHUNK = 1 << 24  # on an accelerator, where every step is a kernel launch


class FactorScratch:
    """Memory for stacked factors on one device, grown to the widest parameter and reused for all."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        self._buffers: dict[str, torch.Tensor] = {}

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """An uninitialised tensor; what was taken under the same name before is overwritten."""
        wanted = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < wanted:
            self._buffers.pop(name, None)  # freed before its larger successor is made
            buffer = self._buffers[name] = torch.empty(wanted, dtype=self.dtype, device=self.device)
        return buffer[:wanted].view(shape)


def add_low_rank(
    out: torch.Tensor, terms: Sequence[tuple[LowRank, float]], scratch: FactorScratch | None = None
) -> None:
    """Out += sum of coefficient * delta, as one product (Hu et al. 2022, equation 3, summed over adapters).

    The factors are stacked anew at each call, which costs ranks * (m + n) copies: give it many rows at a time.

    Args:
        out: [..., m, n] in fp32 or fp64, contiguous, on the scratch's device: some rows of a parameter, or all of it.
        terms: Deltas of the shape of ``out``, with their coefficients.
        scratch: Of the dtype of ``out``; without one its memory is taken and given back at each call.
    """
    if not terms:
        return
    scratch = scratch or FactorScratch(out.device, out.dtype)
    stack = out.view(-1, *out.shape[-2:])
    rows_are_fewer = stack.shape[1] <= stack.shape[2]
    factors = [c * term.scaling for term, c in terms]
    left = _stacked_b([term for term, _ in terms], scratch, factors if rows_are_fewer else None)
    right = _stacked_a([term for term, _ in terms], scratch, None if rows_are_fewer else factors)
    stack.baddbmm_(left, right)


def contract_low_rank(
    gradient: torch.Tensor, terms: Sequence[LowRank], scratch: FactorScratch | None = None
) -> torch.Tensor:
    """<gradient, delta> for each delta: the derivative of the loss by its coefficient.

    Args:
        gradient: dL/dW [..., m, n] of one parameter, any floating dtype, on the scratch's device.
        terms: Deltas of the parameter's shape.
        scratch: In the dtype of the sums, at least fp32; without one its memory is taken and given back at each call.

    Returns:
        [len(terms)] in the dtype of the sums, on the gradient's device; no value is waited for.
    """
    scratch = scratch or FactorScratch(gradient.device, torch.promote_types(gradient.dtype, torch.float32))
    if not terms:
        return torch.zeros(0, dtype=scratch.dtype, device=scratch.device)
    stack = gradient.reshape(-1, *gradient.shape[-2:])
    left, right = _stacked_b(terms, scratch), _stacked_a(terms, scratch)
    ranks = scratch.take("ranks", *right.shape).zero_()
    matrices, rows, columns = stack.shape
    wide = stack.dtype == scratch.dtype
    limit = CHUNK if scratch.device.type == "cpu" else DEVICE_CHUNK
    step = rows if wide else max(1, limit // (matrices * columns))
    for lo in range(0, rows, step):
        part = stack[:, lo : lo + step]
        if not wide:
            part = scratch.take("gradient", *part.shape).copy_(part)
        ranks.baddbmm_(left[:, lo : lo + step].mT, part)
    sums = ranks.mul_(right).sum(dim=(0, 2))
    widths = [term.b.shape[-1] for term in terms]
    return torch.stack([part.sum() * term.scaling for part, term in zip(torch.split(sums, widths), terms, strict=True)])


def _stacked_b(
    terms: Sequence[LowRank], scratch: FactorScratch, factors: Sequence[float] | None = None
) -> torch.Tensor:
    """[matrices, m, ranks of all terms], each term's part times its factor."""
    pieces = [term.b.reshape(-1, *term.b.shape[-2:]) for term in terms]
    matrices, rows, _ = pieces[0].shape
    widths = [piece.shape[-1] for piece in pieces]
    stacked = scratch.take("left", matrices, rows, sum(widths))
    _fill(torch.split(stacked, widths, dim=2), pieces, factors)
    return stacked


def _stacked_a(
    terms: Sequence[LowRank], scratch: FactorScratch, factors: Sequence[float] | None = None
) -> torch.Tensor:
    """[matrices, ranks of all terms, n], each term's part times its factor."""
    pieces = [term.a.reshape(-1, *term.a.shape[-2:]) for term in terms]
    matrices, _, columns = pieces[0].shape
    widths = [piece.shape[-2] for piece in pieces]
    stacked = scratch.take("right", matrices, sum(widths), columns)
    _fill(torch.split(stacked, widths, dim=1), pieces, factors)
    return stacked


def _fill(targets: Sequence[torch.Tensor], pieces: Sequence[torch.Tensor], factors: Sequence[float] | None) -> None:
    for position, (target, piece) in enumerate(zip(targets, pieces, strict=True)):
        target.copy_(piece, non_blocking=True)
        if factors is not None:
            target.mul_(factors[position])
