"""How many chunks each tensor gets, more where task vectors are large (Expert Merging++, ICLR 2026), and its cuts.

counts = chunk_counts(importance, total=96, power=0.5)      # tensor -> chunks; 0: its coefficients are not searched
cut = weighted_chunks((64, 32), [0.1, 0.5, 0.1, 0.3], 3)    # of equal importance, as far as four slices allow
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from optmerge.merging.slices import Chunks, even_chunks


def chunk_counts(importance: Mapping[str, float], *, total: float, power: float) -> dict[str, int]:
    """m_l = floor(total * I_l^power / sum_j I_j^power), with I the importance divided by its sum.

    Args:
        importance: Tensor -> sum over directions of |coefficient| * mean |task vector| * elements.
        total: About how many chunks there are in all; rounding down loses some.
        power: 0 treats all tensors alike, 1 gives chunks in proportion to importance.
    """
    whole = sum(importance.values())
    shares = {name: (value / whole if whole else 0.0) ** power for name, value in importance.items()}
    summed = sum(shares.values())
    return {name: math.floor(total * share / summed) if summed else 0 for name, share in shares.items()}


def weighted_chunks(shape: Sequence[int], profile: Sequence[float], count: int) -> Chunks | None:
    """About ``count`` chunks that are equally important; None where one is left.

    Args:
        shape: Of the parameter.
        profile: Importance of the slices that `even_chunks` makes of it, as many as there are entries; 0 or more.
        count: How many are wanted. Where there are not as many slices, chunks are of equal size instead.

    >>> weighted_chunks((8, 2), [4.0, 1.0, 1.0, 2.0], 2).bounds
    (0, 4, 16)
    """
    fine = even_chunks(shape, len(profile))
    reached = np.cumsum(profile)
    if fine is None or count >= len(profile) or reached[-1] <= 0:
        return even_chunks(shape, count)
    cuts: list[int] = []
    for number in range(1, count):
        ideal = int(np.argmin(np.abs(reached - reached[-1] * number / count))) + 1  # after which slice
        earliest, latest = (cuts[-1] if cuts else 0) + 1, len(profile) - (count - number)
        cuts.append(min(max(ideal, earliest), latest))
    return Chunks((0, *(fine.bounds[cut] for cut in cuts), fine.bounds[-1])) if cuts else None
