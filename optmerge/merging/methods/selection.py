"""The k largest magnitudes of a stream, exactly, in memory that hardly grows with the stream.

Floyd and Rivest's idea (1975): a sample brackets the threshold, one pass counts what lies above the bracket and keeps
what lies inside it, and the threshold is selected among those. Whatever the sample misses is noticed by the counts and
mended by a wider bracket, so the answer is exact for every input. The sample is taken at regular distances: nothing is
random.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from optmerge.errors import ModelError

Values = NDArray[np.floating]

_SAMPLE = 1 << 21  # the threshold's rank is then known to 0.03 % of the stream
_WHOLE = 1 << 16  # streams up to this size are their own sample
_DEVIATIONS = 4.0  # half-width of the bracket in standard deviations of the sampled rank


class Stream(Protocol):
    """Values that can be read more than once, always in the same order."""

    def chunks(self) -> Iterator[Values]:
        """All of them: flat, of one floating dtype, and only looked at until the next chunk is asked for."""

    def sample(self, stride: int) -> Values:
        """About one in ``stride``, flat."""


class Threshold(NamedTuple):
    """Which entries of a part are kept: magnitudes above ``above``, and the first ``ties`` that equal it."""

    above: float
    ties: int


KEEP_ALL = Threshold(-math.inf, 0)
KEEP_NONE = Threshold(math.inf, 0)


@dataclass(slots=True)
class _Counts:
    """What one pass saw of one part, relative to a bracket [low, high]."""

    beyond: int  # magnitude > high
    at_high: int
    inside: Values  # low < magnitude < high
    at_low: int


def just_below(value: float, dtype: np.dtype[np.floating]) -> float:
    """The next smaller number of a dtype: to be above it is to be at least ``value``."""
    return float(np.nextafter(dtype.type(value), dtype.type(-math.inf)))


def largest(parts: Sequence[Stream], size: int, keep: int) -> list[Threshold]:
    """Per part, which of its entries are among the ``keep`` largest magnitudes of all parts together.

    Args:
        parts: Where the values come from.
        size: Entries in all parts together.
        keep: How many are kept; equal magnitudes in the order of parts and entries.
    """
    if keep >= size:
        return [KEEP_ALL] * len(parts)
    if keep <= 0:
        return [KEEP_NONE] * len(parts)
    sample = _sample(parts, size)
    deviations = _DEVIATIONS
    while True:
        low, high = _bracket(sample, size, keep, deviations)
        counts = [_count(part, low, high) for part in parts]
        above = _threshold(counts, keep, low, high)
        if above is not None:
            return _share_ties(counts, keep, above, low, high)
        if low == -math.inf and high == math.inf:
            raise ModelError(
                "A task vector holds NaN, so its largest entries are not defined. Look for damaged tensors in the base "
                "and the experts, and take other checkpoints."
            )
        deviations *= 8  # the sample misled: widen, in the end to everything


def _sample(parts: Sequence[Stream], size: int) -> Values:
    if size <= _WHOLE:
        return np.empty(0)
    stride = max(61, size // _SAMPLE | 1)  # odd, so that it does not stay in the same columns of a matrix
    sample: Values = np.abs(np.concatenate([part.sample(stride) for part in parts]))
    sample.sort()
    return sample


def _bracket(sample: Values, size: int, keep: int, deviations: float) -> tuple[float, float]:
    if not len(sample):
        return -math.inf, math.inf
    share = keep / size
    rank = (1 - share) * len(sample)
    width = deviations * math.sqrt(len(sample) * share * (1 - share)) + deviations
    low, high = math.floor(rank - width), math.ceil(rank + width)
    return (
        float(sample[low]) if low >= 0 else -math.inf,
        float(sample[high]) if high < len(sample) else math.inf,
    )


def _count(part: Stream, low: float, high: float) -> _Counts:
    beyond = at_high = at_low = 0
    inside: list[Values] = []
    magnitude, mask, below = np.empty(0, np.float32), np.empty(0, np.bool_), np.empty(0, np.bool_)
    for chunk in part.chunks():
        if magnitude.shape != chunk.shape or magnitude.dtype != chunk.dtype:
            magnitude = np.empty_like(chunk)
            mask, below = np.empty(chunk.shape, np.bool_), np.empty(chunk.shape, np.bool_)
        np.abs(chunk, out=magnitude)
        larger = int(np.count_nonzero(np.greater(magnitude, high, out=mask)))
        beyond += larger
        from_high = int(np.count_nonzero(np.greater_equal(magnitude, high, out=below)))
        at_high += from_high - larger
        if low == high:
            continue
        strictly = int(np.count_nonzero(np.greater(magnitude, low, out=mask)))
        at_low += int(np.count_nonzero(np.greater_equal(magnitude, low, out=below))) - strictly
        if strictly > from_high:
            np.less(magnitude, high, out=below)
            inside.append(magnitude[np.logical_and(mask, below, out=mask)])
    return _Counts(beyond, at_high, np.concatenate(inside) if inside else magnitude[:0], at_low)


def _threshold(counts: Sequence[_Counts], keep: int, low: float, high: float) -> float | None:
    """The magnitude of rank ``keep``, or None if it is outside of the bracket."""
    missing = keep - sum(count.beyond for count in counts)
    if missing <= 0:
        return None
    missing -= sum(count.at_high for count in counts)
    if missing <= 0:
        return high
    inside = np.concatenate([count.inside for count in counts])
    if missing <= len(inside):
        inside.sort()  # differences of bf16 numbers have few distinct values, on which a partition is ten times slower
        return float(inside[-missing])
    missing -= len(inside)
    return low if missing <= sum(count.at_low for count in counts) else None


def _share_ties(counts: Sequence[_Counts], keep: int, above: float, low: float, high: float) -> list[Threshold]:
    equal, larger = [], 0
    for count in counts:
        if above == high:
            equal.append(count.at_high)
            larger += count.beyond
        elif above == low:
            equal.append(count.at_low)
            larger += count.beyond + count.at_high + len(count.inside)
        else:
            equal.append(int(np.count_nonzero(count.inside == above)))
            larger += count.beyond + count.at_high + int(np.count_nonzero(count.inside > above))
    ties = keep - larger
    thresholds = []
    for count, here in zip(counts, equal, strict=True):
        given = min(ties, here)
        all_kept = Threshold(just_below(above, count.inside.dtype), 0)  # no tie is left to count
        thresholds.append(all_kept if given == here else Threshold(above, given))
        ties -= given
    return thresholds
