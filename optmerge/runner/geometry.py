"""The geometry of a search: what terms of the coefficients may know of the searched table.

geometry = make_geometry(problem, start)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from optmerge.merging.products import delta_cosines, delta_norms, group_sizes
from optmerge.objective.geometry import Geometry
from optmerge.records import Vector

if TYPE_CHECKING:
    from optmerge.runner.problem import Problem


def make_geometry(problem: Problem, start: Vector) -> Geometry:
    """The geometry of a problem's search space; deltas are read when a term asks for norms or cosines.

    Args:
        problem: Opened.
        start: float64[d], where the search begins.
    """
    space, engine, columns = problem.space, problem.engine, problem.columns
    free = space.index >= 0

    def spread(values: Vector) -> torch.Tensor:
        return torch.from_numpy(np.where(free, np.append(values, 0.0)[space.index], space.frozen))

    return Geometry(
        start=torch.from_numpy(space.decode(start)),
        lower=spread(space.lower),
        upper=spread(space.upper),
        free=torch.from_numpy(free),
        sizes=torch.from_numpy(group_sizes(engine)),
        layers=space.layers,
        kinds=space.kinds,
        norms=lambda: torch.from_numpy(delta_norms(engine, columns)),
        cosines=lambda: torch.from_numpy(delta_cosines(engine, columns)),
    )
