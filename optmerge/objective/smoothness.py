"""The term ``smoothness``: whether coefficients change evenly from layer to layer.

    Smoothness(SmoothnessConfig()).value(coefficients, geometry)

Neighbouring layers do similar things, so that a coefficient that leaves its neighbours' line is more often noise of
the calibration data than news.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from optmerge.config.base import Strict
from optmerge.errors import ConfigError
from optmerge.objective.coefficient import CoefficientTerm
from optmerge.objective.geometry import Geometry


class Smoothness(CoefficientTerm):
    """Mean of (c[l - 1] - 2 c[l] + c[l + 1])^2 over layers l, kinds of tensors and directions.

    c[l] is the mean of the searched coefficients that a kind (attention, mlp, norm, ...) has in layer l. The layers of
    a kind are taken in order; where they alternate with others, neighbours are the nearest of the same kind.
    """

    name: ClassVar[str] = "smoothness"
    differentiable: ClassVar[bool] = True
    unit: ClassVar[str] = "coefficient squared"
    paper: ClassVar[str] = "Whittaker 1923, On a New Method of Graduation, with second differences"

    def __init__(self, config: Strict | None = None) -> None:
        super().__init__(config)
        self._known: tuple[Geometry, list[tuple[str, int]], Tensor] | None = None

    def value(self, coefficients: Tensor, geometry: Geometry) -> Tensor:
        """See `CoefficientTerm.value`.

        Raises:
            ConfigError: No kind has searched coefficients in three layers.
        """
        cells, place = self._cells_of(geometry)
        free = (geometry.free & (place >= 0)[:, None]).to(coefficients.dtype)
        total = coefficients.new_zeros(len(cells) + 1, coefficients.shape[1])  # the last cell is of no layer
        summed, count = (total.index_add(0, place % len(total), part) for part in (coefficients * free, free))
        mean, known = summed / count.clamp(min=1), count > 0
        bends = []
        for kind in dict.fromkeys(kind for kind, _ in cells):
            line = [cell for cell, (of, _) in enumerate(cells) if of == kind]
            for direction in range(coefficients.shape[1]):
                searched = [cell for cell in line if known[cell, direction]]
                bends.append(mean[searched, direction].diff(n=2))
        bent = torch.cat(bends) if bends else coefficients.new_zeros(0)
        if not len(bent):
            raise ConfigError(
                "objective: smoothness compares the coefficients of neighbouring layers, and no kind of tensor has "
                "searched coefficients of its own in three layers. Use a space with granularity layer-wise or finer "
                "(of a model with three layers), or take the term out."
            )
        return bent.square().mean()

    def _cells_of(self, geometry: Geometry) -> tuple[list[tuple[str, int]], Tensor]:
        """The (kind, layer) pairs in order, and which of them each row of the table is in; -1 for none.

        Kept, because a table may have millions of rows, and a search has one geometry.
        """
        if self._known is None or self._known[0] is not geometry:
            of = list(zip(geometry.kinds, geometry.layers, strict=True))
            cells = sorted({(kind, layer) for kind, layer in of if layer is not None})
            index: dict[tuple[str, int | None], int] = {cell: number for number, cell in enumerate(cells)}
            self._known = (geometry, cells, torch.tensor([index.get(cell, -1) for cell in of]))
        return self._known[1:]
