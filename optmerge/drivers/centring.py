"""Integer centring for CMA-ES: what the strategy learns from samples whose whole numbers were rounded.

    strategy.integer_centering = Centring(lower, upper, whole)

The strategy judged rounded samples, and would learn from the unrounded ones, which need not be near them. Marty et al.
2024, "LB+IC-CMA-ES: Two Simple Modifications of CMA-ES to Handle Mixed-Integer Problems" (PPSN), therefore move a
sample whose whole number is not the mean's onto that number, and take the bias that this gives the mean out of those
samples that share the mean's number. pycma's own version of it repairs samples by numpy's global generator, so that a
search could not be repeated; this one draws nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from optmerge.records import Vector

INSIDE = 1e-9  # how far within its cell a sample at the very edge is put, so that rounding does not leave the range


class Centring:
    """Callable as pycma calls it, with the selected samples and the mean.

    Args:
        lower: float64[d], the lowest whole numbers.
        upper: float64[d], the highest ones.
        whole: bool[d], the variables that take whole numbers; the others are left alone.

    >>> import numpy as np
    >>> centre = Centring(np.array([0.0, 0.0]), np.array([5.0, 5.0]), np.array([True, False]))
    >>> samples = [np.array([2.7, 2.7]), np.array([1.8, 1.8]), np.array([2.2, 2.2])]
    >>> centre(samples, np.array([2.0, 2.0]))
    >>> [sample.round(6).tolist() for sample in samples]  # 2.7 rose by 0.3, so 2.2 sinks by all of its 0.2
    [[3.0, 2.7], [1.8, 1.8], [2.0, 2.2]]
    """

    def __init__(self, lower: Vector, upper: Vector, whole: npt.NDArray[np.bool_]) -> None:
        self.lower, self.upper = lower[whole] - 0.5 + INSIDE, upper[whole] + 0.5 - INSIDE
        self.whole = whole

    def __call__(self, samples: Sequence[Vector], mean: Vector) -> None:
        """Change the whole numbers of ``samples``, float64[d] each, in place."""
        if not len(samples):
            return
        values = np.clip(np.array([sample[self.whole] for sample in samples]), self.lower, self.upper)
        centre = np.rint(mean[self.whole])
        moved = np.rint(values) - values
        off = np.rint(values) != centre
        bias = np.where(off, moved, 0.0).sum(axis=0)
        # what the samples with the mean's number could contribute, moving to its centre against the bias
        useful = ~off & (moved * bias < 0.0)
        available = np.where(useful, np.abs(moved), 0.0).sum(axis=0)
        share = np.minimum(1.0, np.abs(bias) / np.where(available == 0.0, np.inf, available))
        values += np.where(off, moved, np.where(useful, share * moved, 0.0))
        for sample, value in zip(samples, values, strict=True):
            sample[self.whole] = value
