"""Coefficients as a polynomial of depth: few numbers for many layers.

    curve_name(group)                            # "model.layers.mlp": what the groups of a polynomial have in common
    bernstein([0, 1, 2, 3], degree=2)            # float64[4, 3]

The basis is Bernstein's: a polynomial of degree p has p + 1 control points, spread evenly from its first layer to its
last, and is at every depth an average of them,

    c(x) = sum_i b_i C(p, i) x^i (1 - x)^(p - i),    x in [0, 1]

These are all polynomials of degree p, as with Chebyshev's or Legendre's basis, but the weights are non-negative and sum
to 1. So bounds on the control points hold for every coefficient, control points that are all equal are a constant, and
a control point has the scale of a coefficient, whatever the degree. (Farouki 2012, "The Bernstein polynomial basis: a
centennial retrospective", sections 2 and 3.)
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from optmerge.space.groups import TensorGroup

_NUMBER = re.compile(r"\.\d+(?=\.|$)")


def curve_name(group: TensorGroup) -> str | None:
    """What a layer's group has in common with the same group of the other layers of its stack; None outside layers.

    >>> curve_name(TensorGroup("layer.3.mlp+*.weight", ("model.layers.3.mlp.up.weight",), 3, "mlp"))
    'model.layers.mlp+*.weight'
    >>> curve_name(TensorGroup("model.layers.3.mlp.up.weight", ("model.layers.3.mlp.up.weight",), 3, "mlp"))
    'model.layers.mlp.up.weight'
    >>> curve_name(TensorGroup("layer.1+*.layer.1*.out", ("encoder.layer.1.out",), 1, "mlp"))  # a rule of some layers
    'encoder.layer+*.layer.1*.out'
    """
    if group.layer is None:
        return None
    parameter = group.parameters[0]
    found = _NUMBER.search(parameter)
    stack = parameter[: found.start()] if found else parameter
    if group.name.startswith(parameter):  # tensor-wise
        return _NUMBER.sub("", group.name, count=1)
    _, _, rest = group.name.partition(f"layer.{group.layer}")  # the first one; a rule's pattern may have it too
    return f"{stack}{rest}"


def bernstein(layers: Sequence[int], degree: int) -> npt.NDArray[np.float64]:
    """The weights of the control points at each layer.

    Args:
        layers: n transformer layers, in any order; depth runs from 0 at the lowest to 1 at the highest.
        degree: Of the polynomial, p; lowered to what the distinct layers determine.

    Returns:
        float64[n, p + 1], non-negative, rows that sum to 1.

    >>> bernstein([0, 1, 2], 2).tolist()
    [[1.0, 0.0, 0.0], [0.25, 0.5, 0.25], [0.0, 0.0, 1.0]]
    """
    first, last = min(layers), max(layers)
    degree = min(degree, len(set(layers)) - 1)
    x = (np.array(layers, dtype=np.float64) - first) / max(last - first, 1)
    return np.stack(
        [math.comb(degree, i) * x**i * (1.0 - x) ** (degree - i) for i in range(degree + 1)],
        axis=1,
    )
