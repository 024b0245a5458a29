"""The nearest point of a simplex whose coordinates have upper limits.

weights = project_capped(moved, caps, 1.0)      # argmin |w - moved|, 0 <= w <= caps, sum(w) <= 1
"""

from __future__ import annotations

import numpy as np

from optmerge.records import Vector


def project_capped(point: Vector, caps: Vector, total: float) -> Vector:
    """The projection onto 0 <= w <= caps, sum(w) <= total: the point less the smallest t >= 0 that fits, clipped.

    The sum is piecewise linear in t, with a bend where a coordinate meets a limit, so t is found exactly between two
    bends (as for the plain simplex: Held, Wolfe & Crowder 1974).

    Args:
        point: float64[n].
        caps: float64[n], not negative.
        total: Not negative but for rounding.
    """
    clipped: Vector = np.clip(point, 0.0, caps)
    if clipped.sum() <= total:
        return clipped
    if total <= 0.0:
        return np.zeros_like(clipped)
    bends = np.unique(np.concatenate([point, point - caps, [0.0]]))
    bends = bends[bends >= 0.0]
    sums = np.clip(point - bends[:, None], 0.0, caps).sum(axis=1)  # falls along the bends, to 0
    after = int(np.argmax(sums <= total))
    low, high = bends[after - 1], bends[after]
    share = (sums[after - 1] - total) / (sums[after - 1] - sums[after])
    found: Vector = np.clip(point - (low + share * (high - low)), 0.0, caps)
    return found
