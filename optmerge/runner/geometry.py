"""The geometry of a search: what terms of the coefficients may know of the searched table.

geometry = make_geometry(problem, start)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from optmerge.merging.products import delta_cosines, delta_norms, group_sizes
from optmerge.objective.custom import try_regularisers
from optmerge.objective.geometry import Geometry, Measured
from optmerge.records import Vector

if TYPE_CHECKING:
    from optmerge.objective.objective import Objective
    from optmerge.runner.problem import Problem
    from optmerge.space.space import SearchSpace


def make_geometry(problem: Problem, start: Vector) -> Geometry:
    """The geometry of a problem's search space; deltas are read when a term asks for norms or cosines.

    Args:
        problem: Opened.
        start: float64[d], where the search begins.
    """
    engine, columns = problem.engine, problem.columns
    return _geometry(
        problem.space,
        start,
        sizes=torch.from_numpy(group_sizes(engine)),
        norms=lambda: torch.from_numpy(delta_norms(engine, columns)),
        cosines=lambda: torch.from_numpy(delta_cosines(engine, columns)),
    )


def check_regularisers(objective: Objective, space: SearchSpace) -> None:
    """Let every term of the coefficients look at the space once, before anything that takes time.

    Raises:
        ConfigError: A term has nothing to look at in this space, such as neighbouring layers, or is a user's own and
            cannot be computed.
    """
    rows, columns = space.frozen.shape
    made_up = _geometry(
        space,
        space.start,
        sizes=torch.ones(rows, dtype=torch.int64),
        norms=torch.ones(rows, columns, dtype=torch.float64),
        cosines=lambda: torch.eye(columns, dtype=torch.float64).expand(rows, -1, -1),
    )
    try_regularisers(objective.regularisers, torch.from_numpy(space.decode(space.start)), made_up)


def _geometry(
    space: SearchSpace, start: Vector, *, sizes: torch.Tensor, norms: Measured, cosines: Measured
) -> Geometry:
    return Geometry(
        start=torch.from_numpy(space.decode(start)),
        lower=torch.from_numpy(space.spread(space.lower)),
        upper=torch.from_numpy(space.spread(space.upper)),
        free=torch.from_numpy(space.index >= 0),
        sizes=sizes,
        layers=space.layers,
        kinds=space.kinds,
        norms=norms,
        cosines=cosines,
    )
