"""Coefficients that sum to one within a group: the variables divided by their sum, or the softmax of them.

    table = normalised("softmax", variables, searched, names)          # float64[G, D] each
    slope = variable_slope("softmax", gradient, variables, searched, names)
    variables = variables_for("softmax", table, searched, lower, upper)

Only the searched coefficients of a group take part; the others pass through as they are. The variables of a group are
its own: none is shared with another group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

Table = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Kind = Literal["sum", "softmax"]

_CANCELLED = 1e-12  # a sum below this share of its terms' magnitudes has no digit left
_LEAST = float(np.finfo(np.float64).tiny)  # what a coefficient that no softmax can give (0 or less) is raised to


def normalised(kind: Kind, variables: Table, searched: Mask, names: Sequence[str]) -> Table:
    """The coefficients that the variables stand for.

    c_j = x_j / sum_i x_i, or exp(x_j) / sum_i exp(x_i), over a group's searched columns.

    Args:
        kind: Which of the two.
        variables: float64[G, D]: variables where ``searched``, coefficients elsewhere.
        searched: bool[G, D].
        names: The groups' names, for errors.

    Raises:
        ZeroDivisionError: A group's variables sum to zero, and ``kind`` is ``sum``.
    """
    rows = np.atleast_1d(searched.any(axis=1))
    weights = _weights(kind, variables, searched)
    total = weights.sum(axis=1, keepdims=True)
    cancelled = rows & (np.abs(total[:, 0]) <= _CANCELLED * np.abs(weights).sum(axis=1))
    if cancelled.any():
        row = int(np.flatnonzero(cancelled)[0])
        raise ZeroDivisionError(
            f"the variables of group {names[row]} sum to {float(total[row, 0]):g}, and space.normalise: sum divides by "
            "that; give space.bounds a lower end above 0, or use softmax"
        )
    return np.where(searched, weights / np.where(rows[:, None], total, 1.0), variables)


def variable_slope(kind: Kind, gradient: Table, variables: Table, searched: Mask, names: Sequence[str]) -> Table:
    """DL/dvariables from dL/dcoefficients: the transposed Jacobian of `normalised` at ``variables``.

    dL/dx_j = (g_j - sum_i g_i c_i) s_j, with s_j = 1 / sum_i x_i for ``sum``, and c_j for ``softmax``. Zero where a
    coefficient is not searched.

    Raises:
        ZeroDivisionError: As `normalised`.
    """
    coefficients = np.where(searched, normalised(kind, variables, searched, names), 0.0)
    centred: Table = gradient - (gradient * coefficients).sum(axis=1, keepdims=True)
    total = np.where(searched, variables, 0.0).sum(axis=1, keepdims=True)
    factor = coefficients if kind == "softmax" else searched / np.where(total == 0.0, 1.0, total)
    slope: Table = centred * factor
    return slope


def variables_for(kind: Kind, table: Table, searched: Mask, lower: Table, upper: Table) -> Table:
    """Variables whose coefficients are those of ``table``, as far as there are any; bounds are a wish, not kept.

    Variables are known up to a factor (``sum``) or a shift (``softmax``). The factor is the one nearest to coefficients
    that sum to 1 as they stand, the shift the one that puts a group into the middle of its bounds.

    Args:
        kind: Which normalisation.
        table: float64[G, D], coefficients.
        searched: bool[G, D].
        lower: float64[G, D], bounds of the variables where ``searched``.
        upper: float64[G, D].
    """
    result = table.copy()
    for row in np.flatnonzero(searched.any(axis=1)):
        columns = searched[row]
        match_row = _matching_scale if kind == "sum" else _matching_shift
        result[row, columns] = match_row(table[row, columns], lower[row, columns], upper[row, columns])
    return result


def _weights(kind: Kind, variables: Table, searched: Mask) -> Table:
    if kind == "sum":
        return np.where(searched, variables, 0.0)
    logits = np.where(searched, variables, -np.inf)
    highest = np.where(searched.any(axis=1), logits.max(axis=1), 0.0)
    weights: Table = np.exp(logits - highest[:, None])
    return weights


def _matching_scale(row: Table, lower: Table, upper: Table) -> Table:
    total = row.sum()
    if abs(total) > _CANCELLED * np.abs(row).sum():
        row = row / total
    some = row != 0.0
    if not some.any():
        return row
    ends = np.sort([lower[some] / row[some], upper[some] / row[some]], axis=0)
    least, most = float(ends[0].max()), float(ends[1].min())
    scale = min(max(1.0, least), most) if least <= most and most > 0.0 else 1.0
    return row * scale


def _matching_shift(row: Table, lower: Table, upper: Table) -> Table:
    logits = np.log(np.maximum(row, _LEAST))
    shifted: Table = logits + ((lower - logits).max() + (upper - logits).min()) / 2.0
    return shifted
