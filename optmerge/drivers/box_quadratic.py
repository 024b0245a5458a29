"""The minimum of a convex quadratic in a box, by projected Newton steps.

step = box_step(matrix, gradient, low, high)      # argmin of g's + s'As/2 with low <= s <= high
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from optmerge.records import Vector

Matrix = npt.NDArray[np.float64]

_ROUNDS = 100  # each ends with another set of variables at bounds; a few are enough for dozens of variables


def box_step(matrix: Matrix, gradient: Vector, low: Vector, high: Vector) -> Vector:
    """The step that minimises g's + s'As/2 within bounds (Bertsekas 1982, two-metric projection).

    A round holds the variables that are at a bound and would be pushed beyond it, makes the Newton step of the others,
    and projects it, halved until the model falls. It ends where nothing moves any more.

    Args:
        matrix: float64[d, d], positive definite.
        gradient: float64[d].
        low: float64[d], of the step, not above 0.
        high: float64[d], not below 0.

    Returns:
        float64[d], within bounds exactly; the model is not above 0 there.

    Raises:
        numpy.linalg.LinAlgError: The matrix is singular on the variables that are free.
    """
    step = np.zeros_like(gradient)
    value = 0.0
    for _ in range(_ROUNDS):
        slope = gradient + matrix @ step
        free = ~(((step <= low) & (slope >= 0)) | ((step >= high) & (slope <= 0)))
        if not slope[free].any():
            break
        newton = np.zeros_like(step)
        newton[free] = -np.linalg.solve(matrix[np.ix_(free, free)], slope[free])
        share = 1.0
        while True:
            moved = np.clip(step + share * newton, low, high)
            found = float(gradient @ moved + 0.5 * moved @ matrix @ moved)
            if found < value or share < 1e-10:
                break
            share *= 0.5
        if not found < value:
            break
        settled = value - found <= 1e-14 * abs(found)
        step, value = moved, found
        if settled:
            break
    return step
