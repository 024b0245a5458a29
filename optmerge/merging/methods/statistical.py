"""Builders of the methods in `optmerge.config.methods.statistical`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from optmerge.config.methods import FisherConfig, LedConfig, MatsConfig, Need, SensConfig
from optmerge.errors import ConfigError, did_you_mean
from optmerge.merging.methods.base import Method
from optmerge.merging.methods.building import Builders, divided, weights_of
from optmerge.merging.methods.conjugate_gradient import kronecker_mean
from optmerge.merging.methods.elected import Elected
from optmerge.merging.methods.elementwise import Elementwise
from optmerge.merging.methods.fisher import FisherMean
from optmerge.merging.methods.matrixwise import LayerSolve
from optmerge.merging.methods.sensitivity import Weighed


def _fisher(config: FisherConfig, experts: Sequence[str]) -> Method:
    weights = weights_of(config.name, config.weights, experts)
    divided(config.name, weights)
    return FisherMean(weights, floor=config.floor, normalize=config.normalize)


def _mats(config: MatsConfig, experts: Sequence[str]) -> Method:
    weights = weights_of(config.name, config.weights, experts)
    divided(config.name, weights)
    solve = partial(
        kronecker_mean,
        weights=weights,
        start=config.start,
        iterations=config.iterations,
        tolerance=config.tolerance,
        shrink=config.shrink,
    )
    needs: tuple[Need, ...] = ("grams", "output-grams") if config.objective == "kfac" else ("grams",)
    return LayerSolve(weights, needs=needs, solve=solve, others=config.others)


def _led(config: LedConfig, experts: Sequence[str]) -> Method:
    given = config.densities or {}
    for name in given:
        if name not in experts:
            raise ConfigError(
                f"led.densities.{name}: there is no such expert; expected one of {', '.join(experts)}."
                f"{did_you_mean(name, experts)}"
            )
    densities = tuple(given.get(expert, config.density) for expert in experts)
    return Elementwise(
        weights_of(config.name, config.weights, experts),
        transforms=(partial(Elected, densities=densities),),
        needs=("saliency", "base-saliency"),
    )


def _sens(config: SensConfig, experts: Sequence[str]) -> Method:
    sign = 1.0 if config.favour == "far" else -1.0
    return Elementwise(
        weights_of(config.name, config.weights, experts),
        transforms=(partial(Weighed, temperature=config.temperature, sign=sign),),
        needs=("saliency", "logit-distance"),
    )


STATISTICAL: Builders = {FisherConfig: _fisher, MatsConfig: _mats, LedConfig: _led, SensConfig: _sens}
