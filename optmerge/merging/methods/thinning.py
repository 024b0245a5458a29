"""Thinning: a chunk of which entries are dropped at random, what stays being multiplied (the arithmetic of stage C).

    words, odds = Words(0, "law", "w"), Odds(np.array([1 << 31], np.uint64), np.ones(1))     # every other entry
    sums = new_sums()
    thin(values, words, offset, odds, sums=sums)         # in place
    before, after = totals(sums)                         # the L1 norm so far

Whether an entry stays depends on its parameter's key, on its flat index and, where `Odds` differ by rank, on its row.
`drop_kernels.c` does the work for fp32 and numpy the same with the same bits, sums included, where nothing is compiled.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from optmerge.merging.kernels import LANES, Library, compiled

Sums = NDArray[np.float64]
Stays = NDArray[np.uint8]

_BLOCK = 8  # 32-bit words that Philox makes per count


class Words:
    """The random 32-bit words of one expert's parameter, by flat index.

    Attributes:
        key: Of Philox, 128 bits.
    """

    def __init__(self, seed: int, expert: str, name: str) -> None:
        digest = hashlib.sha256(json.dumps([seed, expert, name]).encode()).digest()
        self.key = int.from_bytes(digest[:16], "little")

    def slice(self, start: int, count: int) -> NDArray[np.uint32]:
        """[count] words, those of entries ``start`` to ``start + count``."""
        first, skip = divmod(start, _BLOCK)
        generator = np.random.Philox(key=self.key, counter=first)
        words = generator.random_raw((skip + count + 1) // 2).astype("<u8", copy=False).view("<u4")
        return words[skip : skip + count]


@dataclass(frozen=True, slots=True)
class Odds:
    """Who stays, by the rank of a magnitude within its row, equal ones in order; or one for all ranks.

    Attributes:
        below: [ranks] an entry stays if its word is at least this, 0 to 2^32.
        factors: [ranks] by which it is then multiplied, above 0; fp64.
    """

    below: NDArray[np.uint64]
    factors: NDArray[np.float64]


def new_sums() -> Sums:
    """[2, LANES] zeros, for the magnitudes before and after."""
    return np.zeros((2, LANES))


def totals(sums: Sums) -> tuple[float, float]:
    """The L1 norms before and after."""
    before, after = (sum(lanes) for lanes in sums.tolist())
    return before, after


def thin(
    values: torch.Tensor,
    words: Words,
    start: int,
    odds: Odds,
    *,
    stays: Stays | None = None,
    sums: Sums | None = None,
) -> None:
    """Drop entries of a chunk, in place.

    Args:
        values: Of any shape, contiguous, fp32 or fp64; rows are along the last dimension.
        words: Those of the parameter.
        start: Flat index of the first value in the parameter.
        odds: One for all ranks, or as many as a row has entries.
        stays: [values.numel()] overwritten: 1 where an entry stays, 0 elsewhere.
        sums: `new_sums`, to which the magnitudes are added. Entry i adds to lane i % LANES, so that their last bits do
            not depend on how a parameter is cut into chunks.
    """
    rows = values.view(-1, values.shape[-1] if values.ndim else 1)
    library = _library(rows)
    if library is not None:
        library.drop(rows, start, words.key, odds.below, odds.factors, stays=stays, sums=sums)
        return
    array = rows.numpy()
    factors = _multipliers(array, words.slice(start, array.size).reshape(array.shape), odds)
    if sums is not None:
        sums[0] = _added(sums[0], array, start)
    if stays is not None:
        np.not_equal(factors.reshape(-1), 0, out=stays.view(np.bool_))
    array *= factors
    if sums is not None:
        sums[1] = _added(sums[1], array, start)


def keep(values: torch.Tensor, stays: Stays, scale: float) -> None:
    """Multiply what stays by ``scale`` and the rest by 0, in place; ``values`` and ``stays`` as in `thin`."""
    library = _library(values)
    if library is not None:
        library.keep(values, stays, scale)
        return
    values.mul_(torch.from_numpy(stays).view(values.shape).to(values.dtype).mul_(scale))


def rising_order(magnitudes: NDArray[np.floating]) -> NDArray[np.int64]:
    """[rows, n]: the order of each row's entries by size, equal ones as they stand.

    Args:
        magnitudes: [rows, n], none negative.
    """
    if magnitudes.dtype != np.float32:
        return np.argsort(magnitudes, axis=-1, kind="stable")
    # Bits of fp32 and position in one whole number: sorted as they are, in a quarter of the time of a stable order.
    keys = magnitudes.view("u4").astype("u8") << 32 | np.arange(magnitudes.shape[-1], dtype="u8")
    keys.sort(axis=-1)
    return (keys & 0xFFFFFFFF).astype("i8")


def _library(values: torch.Tensor) -> Library | None:
    return compiled() if values.dtype == torch.float32 else None


def _multipliers(rows: NDArray[np.floating], words: NDArray[np.uint32], odds: Odds) -> NDArray[np.floating]:
    """[rows, n] by what every entry is multiplied, in the dtype of the rows."""
    factors = odds.factors.astype(rows.dtype)
    nothing = rows.dtype.type(0)
    if len(odds.below) == 1:
        return np.where(words >= odds.below, factors, nothing)
    order = rising_order(np.abs(rows))
    by_rank = np.where(np.take_along_axis(words, order, axis=-1) >= odds.below, factors, nothing)
    multipliers = np.empty_like(rows)
    np.put_along_axis(multipliers, order, by_rank, axis=-1)
    return multipliers


def _added(lanes: Sums, rows: NDArray[np.floating], start: int) -> Sums:
    """[LANES] the lanes and the magnitudes, one row of lanes after the other."""
    skip = start % LANES
    filled = np.zeros((1 + -(-(skip + rows.size) // LANES), LANES))
    filled[0] = lanes
    np.abs(rows.reshape(-1), out=filled.reshape(-1)[LANES + skip :][: rows.size])
    summed: Sums = filled.sum(axis=0)
    return summed
