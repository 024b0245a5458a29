"""Variables as Optuna knows them: a range of floats or of whole numbers, or a choice among names.

distributions = distributions_of(variables)
vector = vector_of(variables, study.ask(distributions).params)
params = params_of(variables, vector)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from optmerge.drivers.variables import Variables
from optmerge.records import Vector


def distributions_of(variables: Variables) -> dict[str, BaseDistribution]:
    """Variable -> its distribution, in the variables' order.

    >>> box = Variables(("a", "n"), [0, 0], [1, 2], [0.5, 1], integer=[False, True], choices={"n": ("x", "y", "z")})
    >>> list(distributions_of(box).values())[1].choices
    ('x', 'y', 'z')
    """
    found: dict[str, BaseDistribution] = {}
    for index, (name, low, high) in enumerate(zip(variables.names, variables.lower, variables.upper, strict=True)):
        if name in variables.choices:
            found[name] = CategoricalDistribution(tuple(variables.choices[name]))
        elif variables.integer is not None and variables.integer[index]:
            found[name] = IntDistribution(int(low), int(high))
        else:
            found[name] = FloatDistribution(float(low), float(high))
    return found


def params_of(variables: Variables, vector: Vector) -> dict[str, Any]:
    """A vector's values as a trial has them."""
    params: dict[str, Any] = dict(zip(variables.names, vector.tolist(), strict=True))
    for name, choices in variables.choices.items():
        params[name] = choices[int(params[name])]
    return params  # of whole numbers floats that are whole, which Optuna takes for them


def vector_of(variables: Variables, params: Mapping[str, Any]) -> Vector:
    """A trial's values as a vector, within bounds."""
    numbers = {name: choices.index(params[name]) for name, choices in variables.choices.items()}
    return variables.project([numbers[name] if name in numbers else params[name] for name in variables.names])
