"""How a parameter is cut into groups that have coefficients of their own: its columns, its rows, or chunks of it.

A cut is a rule, not a list: it says which of its groups every element of the parameter (in row-major order) is in, and
gives any range of elements as small matrices whose coefficients lie along their columns or their rows, so that what
works on them is vectorised whatever the number of groups.

    cut = Columns(matrices=1, rows=3072, width=768)         # a weight [3072, 768]: 768 groups
    for piece in cut.pieces(0, cut.numel, most=1 << 15):
        values[piece.lo : piece.hi].view(piece.rows, piece.width) * piece.spread(coefficients)
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch


class Piece(NamedTuple):
    """Elements ``lo`` to ``hi`` of a parameter as a matrix [rows, width].

    Attributes:
        lo: The first element, in row-major order.
        hi: The last element + 1.
        rows: Of the matrix.
        width: Of the matrix.
        first: The group of its first column (``across``), or of its first row; the next ones follow.
        across: Whether every column has a group, or every row.
    """

    lo: int
    hi: int
    rows: int
    width: int
    first: int
    across: bool

    @property
    def groups(self) -> slice:
        """The groups that its elements are in."""
        return slice(self.first, self.first + (self.width if self.across else self.rows))

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """The coefficients of its elements: of the groups' [count], in a form that the matrix can be multiplied by."""
        mine = values[self.groups]
        return mine if self.across else mine.unsqueeze(1)


@dataclass(frozen=True, slots=True)
class Columns:
    """One group for each column of each of some stacked matrices, in the order of the matrices, then of the columns."""

    matrices: int
    rows: int
    width: int

    @property
    def count(self) -> int:
        """How many groups there are."""
        return self.matrices * self.width

    @property
    def numel(self) -> int:
        """How many elements there are."""
        return self.matrices * self.rows * self.width

    def pieces(self, lo: int, hi: int, most: int) -> Iterator[Piece]:
        """The elements ``lo`` to ``hi``, in order, in pieces of at most ``most`` elements."""
        size = self.rows * self.width
        while lo < hi:
            matrix, within = divmod(lo, size)
            column = within % self.width
            first = matrix * self.width + column
            end = min(hi, (matrix + 1) * size)
            rows = 1 if column else min(most, end - lo) // self.width
            if column or not rows:  # a part of a row
                end = min(end, lo - column + self.width, lo + most)
                yield Piece(lo, end, 1, end - lo, first, across=True)
            else:
                end = lo + rows * self.width
                yield Piece(lo, end, rows, self.width, first, across=True)
            lo = end

    def groups_of_rows(self, lo: int, hi: int, width: int) -> npt.NDArray[np.int64] | None:
        """None: the groups lie across rows."""
        return None

    def sizes(self) -> npt.NDArray[np.int64]:
        """int64[count]: how many elements each group has."""
        return np.full(self.count, self.rows, dtype=np.int64)

    def to_dict(self) -> dict[str, Any]:
        """As a recipe file has it."""
        return {"columns": self.width, "rows": self.rows, "matrices": self.matrices}


@dataclass(frozen=True, slots=True)
class Rows:
    """One group for each run of ``width`` elements: the rows of a weight that is stored with its inputs first."""

    count: int
    width: int

    @property
    def numel(self) -> int:
        """How many elements there are."""
        return self.count * self.width

    def pieces(self, lo: int, hi: int, most: int) -> Iterator[Piece]:
        """The elements ``lo`` to ``hi``, in order, in pieces of at most ``most`` elements."""
        while lo < hi:
            row, within = divmod(lo, self.width)
            rows = 0 if within else min(most, hi - lo) // self.width
            if rows:
                end = lo + rows * self.width
                yield Piece(lo, end, rows, self.width, row, across=False)
            else:
                end = min(hi, lo - within + self.width, lo + most)
                yield Piece(lo, end, 1, end - lo, row, across=False)
            lo = end

    def groups_of_rows(self, lo: int, hi: int, width: int) -> npt.NDArray[np.int64]:
        """The groups of the rows of ``width`` elements between ``lo`` and ``hi``, which are whole rows of a group."""
        return np.arange(lo, hi, width) // self.width

    def sizes(self) -> npt.NDArray[np.int64]:
        """int64[count]: how many elements each group has."""
        return np.full(self.count, self.width, dtype=np.int64)

    def to_dict(self) -> dict[str, Any]:
        """As a recipe file has it."""
        return {"rows": self.count, "width": self.width}


@dataclass(frozen=True, slots=True)
class Chunks:
    """One group for each stretch of elements between two neighbouring bounds.

    Attributes:
        bounds: 0, where each further chunk begins, and the number of elements; increasing.
    """

    bounds: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many groups there are."""
        return len(self.bounds) - 1

    @property
    def numel(self) -> int:
        """How many elements there are."""
        return self.bounds[-1]

    def pieces(self, lo: int, hi: int, most: int) -> Iterator[Piece]:
        """The elements ``lo`` to ``hi``, in order, in pieces of at most ``most`` elements."""
        while lo < hi:
            chunk = bisect_right(self.bounds, lo) - 1
            end = min(hi, self.bounds[chunk + 1], lo + most)
            yield Piece(lo, end, 1, end - lo, chunk, across=False)
            lo = end

    def groups_of_rows(self, lo: int, hi: int, width: int) -> npt.NDArray[np.int64]:
        """The groups of the rows of ``width`` elements between ``lo`` and ``hi``; no chunk divides a matrix's row."""
        found: npt.NDArray[np.int64] = np.searchsorted(np.array(self.bounds), np.arange(lo, hi, width), "right") - 1
        return found

    def sizes(self) -> npt.NDArray[np.int64]:
        """int64[count]: how many elements each group has."""
        bounds = np.array(self.bounds, dtype=np.int64)
        return bounds[1:] - bounds[:-1]

    def to_dict(self) -> dict[str, Any]:
        """As a recipe file has it."""
        return {"chunks": list(self.bounds)}


Cut = Columns | Rows | Chunks


def input_cut(shape: Sequence[int], *, input_first: bool, bias: bool) -> Cut | None:
    """A group for every input of a weight (Goddard et al. 2024: a coefficient per input column); None is one for all.

    Of [outputs, inputs] every column is a group; of weights with their inputs first (GPT-2's Conv1D) every row; of
    stacked matrices those of each matrix; of a convolution those of its kernels as a matrix. An embedding [entries,
    width] has one for each of its dimensions, a norm's gain one per entry, and a bias has one.

    Args:
        shape: Of the parameter.
        input_first: Whether it is stored [..., inputs, outputs].
        bias: Whether it is a bias.
    """
    if not shape or math.prod(shape) < 2 or bias:
        return None
    if len(shape) == 1:
        return Columns(1, 1, shape[0])
    if input_first:
        return Rows(math.prod(shape[:-1]), shape[-1])
    if len(shape) == 3:
        return Columns(shape[0], shape[1], shape[2])
    return Columns(1, shape[0], math.prod(shape[1:]))


def even_chunks(shape: Sequence[int], count: int) -> Chunks | None:
    """About ``count`` chunks of equal size, each of whole rows where the tensor has rows; None where one is left.

    Args:
        shape: Of the parameter.
        count: How many are wanted; there are never more than rows (than elements, of a vector).
    """
    row = shape[-1] if len(shape) > 1 else 1
    rows = math.prod(shape) // max(row, 1)
    count = min(count, rows)
    if count < 2:
        return None
    return Chunks(tuple(row * (rows * chunk // count) for chunk in range(count + 1)))


def cut_from_dict(body: Mapping[str, Any]) -> Cut:
    """What `to_dict` gave.

    Raises:
        ValueError: It is none of the three forms, or its numbers make no cut.
    """

    def numbers(*keys: str) -> list[int]:
        values = [body[key] for key in keys]
        if not all(isinstance(value, int) and not isinstance(value, bool) and value > 0 for value in values):
            raise ValueError(f"{', '.join(keys)} must be whole numbers above 0")
        return values

    match set(body):
        case names if names == {"columns", "rows", "matrices"}:
            width, rows, matrices = numbers("columns", "rows", "matrices")
            return Columns(matrices, rows, width)
        case names if names == {"rows", "width"}:
            return Rows(*numbers("rows", "width"))
        case names if names == {"chunks"}:
            bounds = body["chunks"]
            whole = isinstance(bounds, list) and all(isinstance(bound, int) for bound in bounds)
            if not whole or len(bounds) < 2 or bounds[0] != 0 or any(np.diff(bounds) <= 0):
                raise ValueError("chunks must be a list of increasing whole numbers that begins with 0")
            return Chunks(tuple(bounds))
    raise ValueError("expected the keys columns, rows and matrices; rows and width; or chunks")
