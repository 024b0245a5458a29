"""Which of many inputs to keep: representatives of a pool, without near-duplicates. No label is looked at.

    chosen = representatives(embeddings, 32)               # positions, the most useful first
    kept = distinct(embeddings, above=0.95)                # positions, each unlike all before it

An input stands for those that resemble it; the representatives are those for which every input of the pool has one as
near as possible (facility location). Greedy selection reaches 1 - 1/e of the best such value (Nemhauser et al. 1978),
and bounds on gains that only shrink spare most of its computation. Mirzasoleiman et al. (2015) choose exemplars so.
"""

from __future__ import annotations

import heapq

import torch
from torch import Tensor
from torch.nn.functional import normalize

MOST = 10_000
"""Inputs of a pool: their similarities are held in fp32, 400 MB for as many as this."""

_ROWS = 1024  # of similarities that are computed at once


def distinct(embeddings: Tensor, *, above: float) -> list[int]:
    """The positions of embeddings that are no near-duplicates of an earlier one that is kept.

    Args:
        embeddings: [n, H], of any scale.
        above: Cosine similarity from which on one counts as a duplicate, exclusive.
    """
    unit = _unit(embeddings)
    kept: list[int] = []
    for start in range(0, len(unit), _ROWS):
        block = unit[start : start + _ROWS]
        earlier = (block @ unit[kept].mT > above).any(1) if kept else torch.zeros(len(block), dtype=torch.bool)
        among = (block @ block.mT > above).tril(-1)  # [r, r], with those before it in the block
        dropped = earlier.clone()
        for row in range(len(block)):
            dropped[row] |= (among[row] & ~dropped).any()
        kept += (start + (~dropped).nonzero().squeeze(1)).tolist()
    return kept


def representatives(embeddings: Tensor, count: int) -> list[int]:
    """``count`` positions that cover all embeddings best, by lazy greedy facility location; ties to the first.

    The value of a set is the sum over all embeddings of 1 + the cosine with the nearest of the set, so that it is never
    negative and grows with every member.

    Args:
        embeddings: [n, H], of any scale, n at most `MOST`.
        count: How many; no more than there are.
    """
    if not 0 <= count <= len(embeddings) <= MOST:
        raise ValueError(f"{count} representatives of {len(embeddings)} were asked for; there may be {MOST} at most")
    similar = _similarities(_unit(embeddings))  # row i: what input i would do for each input
    covered = torch.zeros(len(similar))
    # Gains shrink as the set grows (submodularity), so one that was computed earlier is a bound (Minoux 1978).
    bounds = [(-gain, position, 0) for position, gain in enumerate(similar.sum(1, dtype=torch.float64).tolist())]
    heapq.heapify(bounds)
    chosen: list[int] = []
    while len(chosen) < count:
        gain, position, known = heapq.heappop(bounds)
        if known == len(chosen):
            chosen.append(position)
            torch.maximum(covered, similar[position], out=covered)
        else:
            gain = -float((similar[position] - covered).relu_().sum(dtype=torch.float64))
            heapq.heappush(bounds, (gain, position, len(chosen)))
    return chosen


def _unit(embeddings: Tensor) -> Tensor:
    return normalize(embeddings.to("cpu", torch.float32), dim=1)


def _similarities(unit: Tensor) -> Tensor:
    """1 + cosine, [n, n], in blocks of rows."""
    similar = torch.empty(len(unit), len(unit))
    for start in range(0, len(unit), _ROWS):
        torch.mm(unit[start : start + _ROWS], unit.mT, out=similar[start : start + _ROWS])
    return similar.add_(1.0).clamp_(min=0.0)
