"""Values at given ranks of several streams that are read together: exact, in a fixed number of passes.

    found = values_at_ranks(read, [[1, 500], [1, 500]], np.float32)     # found[stream] = [largest, 500th largest]

A radix selection: a pass counts how often each value of the next 16 bits occurs among the numbers that have the bits
found so far, in an order of bits that is the order of the numbers. fp32 takes two passes and fp64 four, with 512 KiB of
counts per stream and rank, whatever the length of the streams and however many numbers are equal. Where a single stream
is cheap to read, `selection` needs fewer passes; here what one stream is made of is what all of them are made of, so
they are read at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from optmerge.errors import ModelError
from optmerge.merging.methods.selection import Values

Read = Callable[[], Iterator[Sequence[Values]]]
"""Starts a pass: chunk by chunk, one flat array per stream. Every pass gives the same numbers."""

_DIGIT = 16  # bits
_DIGITS = 1 << _DIGIT


def values_at_ranks(
    read: Read, ranks: Sequence[Sequence[int]], dtype: type[np.float32] | type[np.float64]
) -> list[list[float]]:
    """Per stream, the values of some ranks.

    Args:
        read: The streams.
        ranks: Of each stream, which ranks, 1 = the largest number, at most the stream's length.
        dtype: Holds every number exactly; narrower chunks are cast up.

    Returns:
        As ``ranks``, the values.

    Raises:
        ModelError: A number is NaN.
    """
    bits = np.dtype(dtype).itemsize * 8
    found = [[(0, rank) for rank in wanted] for wanted in ranks]  # (bits found so far, rank among those that have them)
    for level in range(bits // _DIGIT):
        shift = bits - _DIGIT * (level + 1)
        counts = [{known: np.zeros(_DIGITS, np.int64) for known, _ in wanted} for wanted in found]
        for chunk in read():
            for numbers, counted in zip(chunk, counts, strict=True):
                keys = _ordered(numbers.astype(dtype, copy=False))
                for known, digits in counted.items():
                    # The first pass has no bits yet, and all numbers have them.
                    these = keys[keys >> (shift + _DIGIT) == known] if level else keys
                    places = (these >> shift & (_DIGITS - 1)).astype(np.intp)  # counted are signed numbers
                    digits += np.bincount(places, minlength=_DIGITS)
        found = [
            [_refined(known, rank, counted[known]) for known, rank in wanted]
            for wanted, counted in zip(found, counts, strict=True)
        ]
    return [[_number(known, dtype) for known, _ in wanted] for wanted in found]


def _refined(known: int, rank: int, counts: NDArray[np.int64]) -> tuple[int, int]:
    """The bits with one more digit, and the rank among the numbers that have it."""
    from_top = counts[::-1].cumsum()
    place = int(np.searchsorted(from_top, rank))
    above = int(from_top[place - 1]) if place else 0
    return known << _DIGIT | (_DIGITS - 1 - place), rank - above


def _ordered(numbers: Values) -> NDArray[np.unsignedinteger]:
    """Whole numbers in the order of the floating ones: the sign bit flipped, of negative ones all bits."""
    if np.isnan(numbers.max(initial=0)):
        raise ModelError(
            "A task vector holds NaN, so ranks among its entries are not defined. Look for damaged tensors in the base "
            "and the experts, and take other checkpoints."
        )
    unsigned = np.dtype(f"u{numbers.dtype.itemsize}")
    bits = (numbers + numbers.dtype.type(0)).view(unsigned)  # -0 + 0 is 0
    top = unsigned.type(1 << (unsigned.itemsize * 8 - 1))
    ordered: NDArray[np.unsignedinteger] = bits ^ np.where(bits & top, unsigned.type(~unsigned.type(0)), top)
    return ordered


def _number(key: int, dtype: type[np.float32] | type[np.float64]) -> float:
    unsigned = np.dtype(f"u{np.dtype(dtype).itemsize}")
    top = 1 << (unsigned.itemsize * 8 - 1)
    bits = key ^ top if key & top else ~key & (2 * top - 1)
    return float(np.array([bits], unsigned).view(dtype)[0])
