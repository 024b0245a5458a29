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
    """From dL/dcoefficients to dL/dvariables: the transposed Jacobian of `normalised` at ``variables``.

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
    row_wise = _matching_scale if kind == "sum" else _matching_shift
    return np.where(searched, row_wise(table, searched, lower, upper), table)


def _weights(kind: Kind, variables: Table, searched: Mask) -> Table:
    if kind == "sum":
        return np.where(searched, variables, 0.0)
    logits = np.where(searched, variables, -np.inf)
    highest = np.where(searched.any(axis=1), logits.max(axis=1), 0.0)
    weights: Table = np.exp(logits - highest[:, None])
    return weights


def _matching_scale(table: Table, searched: Mask, lower: Table, upper: Table) -> Table:
    part = np.where(searched, table, 0.0)
    total = part.sum(axis=1, keepdims=True)
    whole = np.abs(total) > _CANCELLED * np.abs(part).sum(axis=1, keepdims=True)
    part = part / np.where(whole, total, 1.0)
    some = part != 0.0
    ends = [np.divide(bound, part, out=np.zeros_like(part), where=some) for bound in (lower, upper)]
    least = np.where(some, np.minimum(*ends), -np.inf).max(axis=1)
    most = np.where(some, np.maximum(*ends), np.inf).min(axis=1)
    fits = some.any(axis=1) & (least <= most * (1.0 + _CANCELLED)) & (most > 0.0)
    scale = np.where(fits, np.minimum(np.maximum(1.0, least), most), 1.0)
    scaled: Table = part * scale[:, None]
    return scaled


def _matching_shift(table: Table, searched: Mask, lower: Table, upper: Table) -> Table:
    logits = np.log(np.maximum(table, _LEAST))
    some = searched.any(axis=1, keepdims=True)
    least = np.where(searched | ~some, lower - logits, -np.inf).max(axis=1, keepdims=True)
    most = np.where(searched | ~some, upper - logits, np.inf).min(axis=1, keepdims=True)
    shifted: Table = logits + (least + most) / 2.0
    return shifted
