"""Coefficients as a function: what a recipe holds, and what the engine and the exporters call.

A static recipe answers with the same table whatever it is asked about; what needs a static one says so through
`Recipe.coefficients`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Table = npt.NDArray[np.float64]


class CoefficientFn(Protocol):
    """Coefficients [G, D] of every tensor group and direction."""

    @property
    def static(self) -> bool:
        """Whether the table is the same for every input."""

    def __call__(self) -> Table:
        """The table, float64[G, D]."""


@dataclass(frozen=True, eq=False)
class Static:
    """The same coefficients for every input.

    >>> import numpy as np
    >>> Static(np.array([[0.5, 0.5]]))().tolist()
    [[0.5, 0.5]]
    """

    values: Table

    def __post_init__(self) -> None:
        frozen = np.array(self.values, dtype=np.float64)
        frozen.setflags(write=False)
        object.__setattr__(self, "values", frozen)

    @property
    def static(self) -> bool:
        """Always."""
        return True

    def __call__(self) -> Table:
        """The table, float64[G, D], read-only."""
        return self.values
