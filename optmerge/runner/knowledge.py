"""What a driver may know of a search before it begins: its variables' norms and the recipes that are good already.

    variables = make_variables(problem, start, ranked=[table of the best baseline, table of the next])

A driver knows nothing of models, so this is all in the vector's own terms. What its settings do not ask for is not
measured: norms read every delta once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from optmerge.drivers.base import Variables
from optmerge.merging.coefficients import Table
from optmerge.merging.products import delta_norms
from optmerge.records import Vector
from optmerge.space.space import SearchSpace

if TYPE_CHECKING:
    from optmerge.runner.problem import Problem


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
    known = known_vectors(space, start, (table[:, problem.columns] for table in ranked), getattr(driver, "known", 0))
    return Variables(space.names, space.lower, space.upper, start, norms=norms, known=known, curvature=curvature)


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
