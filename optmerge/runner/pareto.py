"""Fronts of points with several values, all minimised: who is dominated, how much a set dominates, how to thin it.

    front = non_dominated(values)                      # bool[n]
    few = thin(values[front], 16)                      # positions of 16 that stand for all of them
    share = Region(ideal, reference).share(values)     # of the box between two points, what the set dominates

The hypervolume (Zitzler & Thiele 1998) is counted on a fixed set of evenly spread points: exact volumes cost a time
that is exponential in the number of tasks, and a curve or a choice needs three digits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from optmerge.records import Vector

Mask = npt.NDArray[np.bool_]
Positions = npt.NDArray[np.int64]

POINTS = 8192  # that a region is counted on; an error of about one in a thousand
BEYOND = 0.1  # share of the values' range by which a front's own reference point lies behind its worst values


def non_dominated(values: Vector) -> Mask:
    """Which rows no other row dominates; of equal rows the first one.

    A row dominates another if it is nowhere higher and somewhere lower.

    Args:
        values: float64[n, tasks], finite.

    Returns:
        bool[n].

    >>> non_dominated(np.array([[1.0, 3.0], [2.0, 2.0], [2.0, 3.0], [3.0, 1.0], [2.0, 2.0]])).tolist()
    [True, True, False, True, False]
    """
    kept = np.zeros(len(values), dtype=bool)
    # In this order only an earlier row can dominate a later one, or be equal to it.
    order = np.lexsort((np.arange(len(values)), *values.T[::-1]))
    front = np.empty_like(values)
    size = 0
    for row in order:
        if not (front[:size] <= values[row]).all(axis=1).any():
            front[size] = values[row]
            size += 1
            kept[row] = True
    return kept


class Region:
    """The box between two points, as evenly spread points to count.

    The points are a Kronecker sequence on powers of the generalised golden ratio (Roberts 2018), the same every time.

    Args:
        ideal: float64[tasks], the lower corner.
        reference: float64[tasks], the upper corner; where it is not above ``ideal``, nothing is dominated.
        points: How many.

    >>> round(Region(np.zeros(2), np.ones(2)).share(np.array([[0.5, 0.5], [0.0, 0.9]])), 3)
    0.3
    """

    def __init__(self, ideal: Vector, reference: Vector, *, points: int = POINTS) -> None:
        tasks = len(ideal)
        self.empty = bool((reference <= ideal).any())
        shares = (0.5 + np.outer(np.arange(1, points + 1), _steps(tasks))) % 1.0
        self._points = ideal + shares * (reference - ideal)

    def covered(self, values: Vector) -> Mask:
        """Which points each row dominates, bool[n, points].

        Args:
            values: float64[n, tasks].
        """
        if self.empty:
            return np.zeros((len(values), len(self._points)), dtype=bool)
        found = np.ones((len(values), len(self._points)), dtype=bool)
        for task in range(values.shape[1]):
            found &= values[:, task, None] <= self._points[None, :, task]
        return found

    def share(self, values: Vector) -> float:
        """The share of the box that at least one row dominates: the hypervolume over the box's own."""
        return float(self.covered(values).any(axis=0).mean())

    def growth(self, values: Vector) -> Vector:
        """The share that the first rows dominate together, float64[n]: the first, the first two, and so on."""
        left = self._points if not self.empty else self._points[:0]
        shares = np.empty(len(values))
        for position, row in enumerate(values):
            left = left[~(row <= left).all(axis=1)]
            shares[position] = 0.0 if self.empty else 1.0 - len(left) / len(self._points)
        return shares


def thin(values: Vector, count: int) -> Positions:
    """Positions of at most ``count`` rows that stand for all of them, increasing.

    The best of each task, and then one after the other the row that adds most to the hypervolume (which comes within
    1 - 1/e of the best choice of as many; Guerreiro, Fonseca & Paquete 2016); the earliest of equals.

    Args:
        values: float64[n, tasks], of a front.
        count: At least 0.
    """
    if len(values) <= count:
        return np.arange(len(values))
    low, high = values.min(axis=0), values.max(axis=0)
    spread = np.where(high > low, high - low, 1.0)
    covered = Region(low, high + BEYOND * spread).covered(values)
    chosen = list(dict.fromkeys(values.argmin(axis=0).tolist()))[:count]
    free = ~covered[chosen].any(axis=0)
    while len(chosen) < count:
        gains = (covered & free).sum(axis=1)
        gains[chosen] = -1
        best = int(gains.argmax())
        chosen.append(best)
        free &= ~covered[best]
    return np.sort(np.array(chosen, dtype=np.int64))


def _steps(tasks: int) -> Vector:
    """The steps of the sequence, 1/g, 1/g^2, ..., with g^(tasks + 1) = g + 1."""
    golden = 2.0
    for _ in range(64):  # a contraction: the last bits stand long before
        golden = (1.0 + golden) ** (1.0 / (tasks + 1))
    return golden ** -np.arange(1.0, tasks + 1)
