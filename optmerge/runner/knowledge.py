"""What a driver may know of a search before it begins: its variables' norms and the recipes that are good already.

    variables = make_variables(problem, start, ranked=[table of the best baseline, table of the next])

A driver knows nothing of models, so this is all in the vector's own terms. What its settings do not ask for is not
measured: norms read every delta once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from optmerge.drivers.variables import Variables
from optmerge.errors import ConfigError
from optmerge.merging.coefficients import Table
from optmerge.merging.products import delta_norms
from optmerge.records import Vector
from optmerge.space.space import SearchSpace

if TYPE_CHECKING:
    from optmerge.runner.problem import Problem

STEPPING = ("adam", "adamw", "sgd")
"""Drivers that follow the gradient whatever the value does."""


def make_variables(
    problem: Problem, start: Vector, ranked: Iterable[Table], *, curvature: Vector | None = None
) -> Variables:
    """The variables of a problem's space, with what its driver asks for.

    Args:
        problem: Opened.
        start: float64[d], where the search begins.
        ranked: Coefficients [G, D] of baselines that the space reaches, the best first; all directions are columns.
        curvature: float64[d], the mean squared gradient that an earlier stage of the schedule has recorded.
    """
    space, driver = problem.space, problem.config.driver
    norms: Vector | None = None
    if getattr(driver, "scale", "none") == "norms":
        norms = variable_norms(space, delta_norms(problem.engine, problem.columns))
    cells = require_cells(driver.name, space)
    known = known_vectors(space, start, (table[:, problem.columns] for table in ranked), getattr(driver, "known", 0))
    return Variables(
        space.names,
        space.lower,
        space.upper,
        start,
        norms=norms,
        known=known,
        curvature=curvature,
        cells=cells,
        integer=space.integer,
        choices=space.choices,
    )


def require_cells(driver: str, space: SearchSpace) -> npt.NDArray[np.int64] | None:
    """`variable_cells` for a driver that needs them, None for any other.

    Raises:
        ConfigError: A variable is not one direction's coefficient, or coefficients are variables rounded and the driver
            is none that steps along the gradient.
    """
    if space.rounded and driver not in STEPPING:
        raise ConfigError(
            f"space.whole is straight-through: a loss of rounded variables has steps, and the driver {driver} compares "
            f"its values between them. Use one of {', '.join(STEPPING)}, or whole: true with cma, optuna or "
            "natural-niches."
        )
    if driver != "frank-wolfe":
        return None
    cells = variable_cells(space)
    if cells is None:
        raise ConfigError(
            "driver is frank-wolfe, which weighs experts against one another, and in this space a variable is not one "
            "expert's coefficient (model-wise, polynomial, shared or normalised). Take task-wise, layer-wise, "
            "layer-kind-wise or tensor-wise with normalise: none, or another driver."
        )
    return cells


def variable_cells(space: SearchSpace) -> npt.NDArray[np.int64] | None:
    """The group (the first one of several that are tied) and the direction of every variable: int64[d, 2].

    None where a variable is no coefficient of its own: it serves several directions, is normalised, or one of a
    polynomial's.
    """
    rows, columns = np.nonzero(space.index >= 0)
    if space.normalise is not None or space.blocks is not None:
        return None
    which = space.index[rows, columns]
    first = np.full(space.dimension, space.num_rows, dtype=np.int64)
    np.minimum.at(first, which, rows)
    direction = np.zeros(space.dimension, dtype=np.int64)
    direction[which] = columns
    if (direction[which] != columns).any():
        return None
    return np.stack([first, direction], axis=1)


def variable_norms(space: SearchSpace, norms: Table) -> Vector:
    """How far a variable's unit moves the model: the norm of all deltas that it scales, as if they were orthogonal.

    Args:
        space: Groups and variables.
        norms: float64[G, D], of every delta in every group.

    Returns:
        float64[d].
    """
    return np.sqrt(space.gather_squares(norms**2))


def known_vectors(space: SearchSpace, start: Vector, ranked: Iterable[Table], most: int) -> list[Vector]:
    """The first ``most`` vectors of ``ranked`` coefficients that differ from the start and from one another."""
    found: list[Vector] = []
    for table in ranked:
        if len(found) >= most:
            break
        vector = space.encode(table)
        if not any(np.allclose(vector, other, rtol=0.0, atol=1e-9) for other in (start, *found)):
            found.append(vector)
    return found
