"""What builders of methods share: from a configuration's weights by name to one number per expert.

weights = weights_of("ties", config.weights, experts)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optmerge.config.methods import MethodSettings
from optmerge.errors import ConfigError, did_you_mean
from optmerge.merging.methods.base import Method

Builder = Callable[[Any, Sequence[str]], Method]
"""(settings, names of the experts) -> the method; the settings are of the class under which the builder stands."""
Builders = Mapping[type[MethodSettings], Builder]


def weights_of(method: str, weights: Mapping[str, float] | None, experts: Sequence[str]) -> tuple[float, ...]:
    """One weight per expert; 1 where none is given."""
    given = weights or {}
    for name in given:
        if name not in experts:
            raise ConfigError(
                f"{method}.weights.{name}: there is no such expert; expected one of {', '.join(experts)}."
                f"{did_you_mean(name, experts)}"
            )
    return tuple(float(given.get(expert, 1.0)) for expert in experts)


def divided(method: str, weights: tuple[float, ...]) -> tuple[float, ...]:
    """The weights divided by their sum."""
    total = sum(weights)
    if abs(total) < 1e-8:
        raise ConfigError(
            f"{method}.weights add up to {total:g}, and the merge is divided by their sum; give weights whose sum is "
            "not 0."
        )
    return tuple(weight / total for weight in weights)
