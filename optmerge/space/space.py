"""The search space: the only translator between a driver's flat vector and a table of coefficients [G, D].

space = build_space(config, roles, direction_names, shapes=family.parameters)      # of `optmerge.space.build`
table = space.decode(vector)          # float64[d] -> float64[G, D]
vector = space.encode(table)          # the nearest vector, cut to the bounds
slope = space.pull_back(gradient, vector)     # dL/dtable -> dL/dvector

A vector makes values, and each searched coefficient has one of them. Values are the variables themselves, but where
the space has `Blocks`, as for polynomials of depth; coefficients that are shared or tied have the same value. A tensor
whose slices have coefficients of their own is one `TensorGroup` and many rows of the table. Everything per row and per
variable is an array, so that a million of them cost no more than their bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from optmerge.merging.slices import Cut
from optmerge.space.blocks import Blocks
from optmerge.space.groups import TensorGroup
from optmerge.space.names import VariableNames, slices_name
from optmerge.space.normalise import Kind, Mask, Table, normalised, variable_slope, variables_for

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """Groups, directions and variables.

    Attributes:
        groups: What the G rows of a table belong to, in order; one that is cut has as many rows as slices.
        directions: D direction names.
        names: d names, of the vector's variables.
        lower: float64[d].
        upper: float64[d].
        start: float64[d]; the configured start, before any baseline is known.
        index: int64[G, D]: which value a coefficient has, or -1 where it is frozen.
        frozen: float64[G, D]: the coefficients where ``index`` is -1.
        held: bool[G, D]: which of these stay at the start, wherever it is (`started_at`).
        normalise: How a group's searched coefficients are made to sum to 1; None leaves them as the variables are.
        blocks: How values follow from variables; None where they are the variables.
        whole: Whether coefficients are whole numbers; there are then neither ``normalise`` nor ``blocks``.
        rounded: With ``whole``, that coefficients are the variables rounded, and not the variables whole numbers. The
            rounding has a slope of 1, as in straight-through estimators (Bengio et al. 2013).
    """

    groups: tuple[TensorGroup, ...]
    directions: tuple[str, ...]
    names: VariableNames
    lower: Vector
    upper: Vector
    start: Vector
    index: npt.NDArray[np.int64]
    frozen: Table
    held: Mask
    normalise: Kind | None = None
    blocks: Blocks | None = None
    whole: bool = False
    rounded: bool = False

    @property
    def dimension(self) -> int:
        """How many variables are searched."""
        return len(self.names)

    @property
    def num_rows(self) -> int:
        """G, the rows of a table of coefficients."""
        return int(self.index.shape[0])

    @cached_property
    def rows(self) -> tuple[slice, ...]:
        """The rows of each of ``groups``."""
        ends = np.cumsum([group.count for group in self.groups]).tolist()
        return tuple(slice(end - group.count, end) for group, end in zip(self.groups, ends, strict=True))

    @property
    def layers(self) -> tuple[int | None, ...]:
        """Each row's transformer layer."""
        return tuple(group.layer for group in self.groups for _ in range(group.count))

    @property
    def kinds(self) -> tuple[str, ...]:
        """Each row's role."""
        return tuple(group.kind for group in self.groups for _ in range(group.count))

    @property
    def row_of(self) -> dict[str, int]:
        """Parameter -> its row, or the first of them."""
        return {name: at.start for group, at in zip(self.groups, self.rows, strict=True) for name in group.parameters}

    @property
    def cuts(self) -> dict[str, Cut]:
        """Parameter -> how it is cut, for those that are."""
        return {group.parameters[0]: group.cut for group in self.groups if group.cut is not None}

    @property
    def searched_groups(self) -> npt.NDArray[np.int64]:
        """Rows with at least one searched coefficient."""
        return np.flatnonzero(self._searched.any(axis=1))

    @property
    def searched_parameters(self) -> list[str]:
        """The only parameters that need gradients: those with a searched coefficient."""
        some = np.atleast_1d(self._searched.any(axis=1))
        return [
            name
            for group, at in zip(self.groups, self.rows, strict=True)
            if some[at].any()
            for name in group.parameters
        ]

    @property
    def nbytes(self) -> int:
        """What a search holds for its coefficients beside the driver: the space's arrays, and six tables [G, D]."""
        own = (self.lower, self.upper, self.start, self.index, self.frozen, self.held)
        return sum(array.nbytes for array in own) + 6 * self.frozen.nbytes

    @property
    def integer(self) -> Mask | None:
        """bool[d]: variables that take whole numbers only; None where there are none."""
        return np.ones(self.dimension, dtype=np.bool_) if self.whole and not self.rounded else None

    @property
    def choices(self) -> Mapping[str, Sequence[str]]:
        """Variable -> what its whole numbers from 0 on stand for, where these are names."""
        return {}

    @property
    def usual(self) -> Collection[str]:
        """The directions that baselines are made of."""
        return self.directions

    def columns_at(self, vector: Vector) -> list[int]:
        """The directions, by column, that can have a coefficient at a vector."""
        return list(range(len(self.directions)))

    def method_at(self, vector: Vector) -> str | None:
        """The method that a vector chooses; None where nothing is chosen."""
        return None

    def decode(self, vector: Vector) -> Table:
        """float64[d] -> coefficients float64[G, D].

        Raises:
            ZeroDivisionError: ``normalise`` is ``sum``, and a group's variables sum to zero.
        """
        table = self.spread(np.rint(vector) if self.rounded else vector)
        return table if self.normalise is None else normalised(self.normalise, table, self._searched, self._row_names)

    def encode(self, table: Table) -> Vector:
        """The vector whose coefficients are nearest to ``table``, by least squares, then cut to the bounds.

        A variable that alone sets some coefficients has their mean, the nearest whole number of it if ``whole``.
        `misfit` says what is lost.

        With ``normalise``, where the coefficients of ``table`` do not sum to 1 within a group, those of the vector are
        proportional to them (``sum``, and ``softmax`` where they are above 0), up to the bounds.
        """
        if self.normalise is not None:
            lower, upper = self.spread(self.lower), self.spread(self.upper)
            table = variables_for(self.normalise, table, self._searched, lower, upper)
        sizes = self._gather(self._searched.astype(np.float64))
        vector = self._gather(table) / sizes
        if self.blocks is not None:
            vector = self.blocks.nearest(vector, sizes)
        return np.clip(np.rint(vector) if self.whole else vector, self.lower, self.upper)

    def misfit(self, table: Table) -> float:
        """How far the searched coefficients of ``table`` are from those of `encode`'s vector, at most."""
        try:
            nearest = self.decode(self.encode(table))
        except ZeroDivisionError:
            return np.inf
        return float(np.abs(nearest - table)[self._searched].max())

    def reaches(self, table: Table) -> bool:
        """Whether the searched coefficients of ``table`` are those of some vector within bounds, to 1e-9."""
        return self.misfit(table) <= 1e-9

    def started_at(self, table: Table) -> SearchSpace:
        """The space of a search that starts from these coefficients: what is held stays at them."""
        return replace(self, frozen=np.where(self.held, table, self.frozen)) if self.held.any() else self

    def pull_back(self, gradient: Table, vector: Vector) -> Vector:
        """From dL/dcoefficients [G, D] to dL/dvector [d]: the transposed Jacobian of `decode` at ``vector``."""
        if self.normalise is not None:
            variables = self.spread(vector)
            gradient = variable_slope(self.normalise, gradient, variables, self._searched, self._row_names)
        slope = self._gather(gradient)
        return slope if self.blocks is None else self.blocks.transposed(slope)

    def spread(self, vector: Vector) -> Table:
        """A number per variable -> per coefficient, before any `normalise`; those that are frozen stand as they are.

        Bounds of the variables give bounds of the coefficients so, for the weights of `blocks` are averages.
        """
        values = vector if self.blocks is None else self.blocks(vector)
        return np.where(self._searched, np.append(values, 0.0)[self.index], self.frozen)

    def gather_squares(self, squares: Table) -> Vector:
        """float64[d]: of each variable the sum over coefficients of (d coefficient / d variable)^2 times ``squares``.

        As if there were no `normalise`.
        """
        gathered = self._gather(squares)
        return gathered if self.blocks is None else self.blocks.squared(gathered)

    @cached_property
    def _searched(self) -> Mask:
        return self.index >= 0

    @property
    def _row_names(self) -> Sequence[str]:
        return VariableNames([slices_name(g.name, g.count) if g.cut is not None else g.name for g in self.groups])

    def _gather(self, table: Table) -> Vector:
        """The sum over the coefficients that have a value, of every value."""
        searched = self._searched
        size = self.dimension if self.blocks is None else self.blocks.size
        summed: Vector = np.bincount(self.index[searched], weights=table[searched], minlength=size).astype(np.float64)
        return summed
