"""Builders of the methods in `optmerge.config.methods.geometric`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from optmerge.config.methods import (
    KarcherConfig,
    ModelStockConfig,
    MultiSlerpConfig,
    NuSlerpConfig,
    PassthroughConfig,
)
from optmerge.errors import ConfigError, did_you_mean
from optmerge.merging.methods.base import Method
from optmerge.merging.methods.building import Builders, divided, weights_of
from optmerge.merging.methods.combination import Combination
from optmerge.merging.methods.passthrough import BASE, Passthrough
from optmerge.merging.methods.sphere import STRAIGHT, arc, spherical_mean
from optmerge.merging.methods.stock import stock


def _nuslerp(config: NuSlerpConfig, experts: Sequence[str]) -> Method:
    if len(experts) != 2:
        raise ConfigError(
            f"nuslerp is between two experts, and there are {len(experts)} ({', '.join(experts)}). Use slerp for one "
            "expert and the base, and multislerp or karcher for more."
        )
    mergekit = config.compat == "mergekit"
    return Combination(
        partial(arc, t=config.t, line=STRAIGHT, zero_is_orthogonal=mergekit),
        weights=(1 - config.t, config.t),
        origin=config.origin,
        scope=config.scope,
        as_stored=mergekit,
    )


def _multislerp(config: MultiSlerpConfig, experts: Sequence[str]) -> Method:
    weights = divided(config.name, weights_of(config.name, config.weights, experts))
    # mergekit projects onto the tangent space in the place of the logarithm, and the projections add up to zero.
    steps = 0 if config.compat == "mergekit" else 1
    rule = partial(spherical_mean, weights=weights, steps=steps)
    return Combination(rule, weights=weights, origin=config.origin)


def _karcher(config: KarcherConfig, experts: Sequence[str]) -> Method:
    weights = divided(config.name, weights_of(config.name, config.weights, experts))
    steps, tolerance = (10, 1e-5) if config.compat == "mergekit" else (100, 1e-9)
    if config.iterations is not None:
        steps = config.iterations
    if config.tolerance is not None:
        tolerance = config.tolerance
    rule = partial(spherical_mean, weights=weights, steps=steps, tolerance=tolerance)
    return Combination(rule, weights=weights, origin=config.origin)


def _model_stock(config: ModelStockConfig, experts: Sequence[str]) -> Method:
    if len(experts) < 2:
        raise ConfigError(
            f"model_stock measures the angle between two experts or more, and there is one ({', '.join(experts)}). "
            "Give it another one fine-tuned from the same base, or use task_arithmetic."
        )
    mergekit = config.compat == "mergekit"
    return Combination(
        partial(stock, average=config.average, unclamped=mergekit),
        weights=(1 / len(experts),) * len(experts),
        origin="base",
        scope=config.scope,
        as_stored=mergekit,
    )


def _passthrough(config: PassthroughConfig, experts: Sequence[str]) -> Method:
    source = experts[0] if config.expert is None else config.expert
    for setting, name in {"expert": source, **{f"take.{pattern}": who for pattern, who in config.take.items()}}.items():
        if name not in (*experts, BASE):
            raise ConfigError(
                f"passthrough.{setting} is {name!r}, and there is no such expert; expected base, or one of "
                f"{', '.join(experts)}.{did_you_mean(name, (BASE, *experts))}"
            )
    return Passthrough(source, config.take, experts=experts)


GEOMETRIC: Builders = {
    NuSlerpConfig: _nuslerp,
    MultiSlerpConfig: _multislerp,
    KarcherConfig: _karcher,
    ModelStockConfig: _model_stock,
    PassthroughConfig: _passthrough,
}
