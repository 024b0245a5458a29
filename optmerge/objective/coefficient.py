"""What a term of the coefficients is: one number per evaluation, out of the searched table alone.

    class Anchor(CoefficientTerm):
        name = "anchor"
        ...
        def value(self, coefficients, geometry):
            return (coefficients - geometry.start)[geometry.free].square().sum()

It regularises what a driver is told, and so counts on the fit split only: which iterate is best is a question about
models, and the select split answers it, as a validation loss leaves weight decay out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from optmerge.config.base import Strict
from optmerge.objective.geometry import Geometry


class CoefficientTerm(ABC):
    """Judges coefficients; raw, in its own unit, low where they are good, added once and not per task.

    Attributes:
        name: What search files, trajectories and tables call it.
        differentiable: Whether it has a useful gradient.
        unit: Of its values.
        paper: Where it is from.
        config: Its settings.
    """

    name: ClassVar[str]
    differentiable: ClassVar[bool]
    unit: ClassVar[str]
    paper: ClassVar[str]

    def __init__(self, config: Strict | None = None) -> None:
        self.config = config

    @abstractmethod
    def value(self, coefficients: Tensor, geometry: Geometry) -> Tensor:
        """The value of a table of coefficients.

        Args:
            coefficients: fp64[G, D] on the CPU, with a gradient where one is wanted.
            geometry: Of the table.

        Returns:
            An fp64 scalar, differentiable by ``coefficients`` unless the class says otherwise.
        """
