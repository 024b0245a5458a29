"""Values as linear functions of variables, block by block: what a space has where several variables make a coefficient.

    blocks = Blocks.of([Block(values, variables, matrix), ...], size=13, dimension=7)
    values = blocks(vector)                 # float64[d] -> float64[n]
    slope = blocks.transposed(gradient)     # dL/dvalues -> dL/dvector
    vector = blocks.nearest(values, weights)

A value that no block names is a variable of its own. The transpose is that of the same matrices, so that a gradient is
exact up to rounding.

>>> line = Block(np.array([0, 1, 2]), np.array([0, 1]), np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]))
>>> blocks = Blocks.of([line], size=4, dimension=3)
>>> blocks(np.array([0.0, 1.0, 7.0])).tolist()
[0.0, 0.5, 1.0, 7.0]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Block:
    """Some values that some variables make; no other block has either.

    Attributes:
        values: int64[n], their numbers.
        variables: int64[m], their numbers.
        matrix: float64[n, m], of full column rank.
    """

    values: Numbers
    variables: Numbers
    matrix: Vector


@dataclass(frozen=True, eq=False)
class Blocks:
    """A block-diagonal matrix [n, d], the identity outside its blocks.

    Attributes:
        blocks: Its dense parts.
        plain_values: int64[q], the values that are variables as they are.
        plain_variables: int64[q], which ones.
        size: n.
        dimension: d.
    """

    blocks: tuple[Block, ...]
    plain_values: Numbers
    plain_variables: Numbers
    size: int
    dimension: int

    @classmethod
    def of(cls, blocks: Sequence[Block], *, size: int, dimension: int) -> Blocks:
        """The values and variables that no block names belong together in their order; there are as many of both."""
        values, variables = np.arange(size), np.arange(dimension)
        if blocks:
            values = np.delete(values, np.concatenate([block.values for block in blocks]))
            variables = np.delete(variables, np.concatenate([block.variables for block in blocks]))
        assert len(values) == len(variables), "a value without a block is a variable"
        return cls(tuple(blocks), values, variables, size, dimension)

    def __call__(self, vector: Vector) -> Vector:
        """float64[d] -> float64[n]."""
        values = np.empty(self.size)
        values[self.plain_values] = vector[self.plain_variables]
        for block in self.blocks:
            values[block.values] = block.matrix @ vector[block.variables]
        return values

    def transposed(self, values: Vector) -> Vector:
        """float64[n] -> float64[d], by the transposed matrix."""
        vector = np.empty(self.dimension)
        vector[self.plain_variables] = values[self.plain_values]
        for block in self.blocks:
            vector[block.variables] = block.matrix.T @ values[block.values]
        return vector

    def squared(self, squares: Vector) -> Vector:
        """float64[n] -> float64[d]: as `transposed`, by the matrix of squared entries."""
        vector = np.empty(self.dimension)
        vector[self.plain_variables] = squares[self.plain_values]
        for block in self.blocks:
            vector[block.variables] = (block.matrix**2).T @ squares[block.values]
        return vector

    def nearest(self, values: Vector, weights: Vector) -> Vector:
        """The vector whose values differ least from these: weighted least squares, exact where some vector has them.

        Args:
            values: float64[n].
            weights: float64[n], above 0: of each squared difference.
        """
        vector = np.empty(self.dimension)
        vector[self.plain_variables] = values[self.plain_values]
        for block in self.blocks:
            root = np.sqrt(weights[block.values])
            vector[block.variables] = np.linalg.lstsq(block.matrix * root[:, None], values[block.values] * root)[0]
        return vector
