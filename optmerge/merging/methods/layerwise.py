"""Builders of the methods in `optmerge.config.methods.layerwise`."""

from __future__ import annotations

from collections.abc import Sequence

from optmerge.config.methods import RegMeanPlusPlusConfig
from optmerge.merging.methods.base import Method
from optmerge.merging.methods.building import Builders, divided, weights_of
from optmerge.merging.methods.matrixwise import RegMean


def _regmean_plus_plus(config: RegMeanPlusPlusConfig, experts: Sequence[str]) -> Method:
    weights = weights_of(config.name, config.weights, experts)
    divided(config.name, weights)
    return RegMean(weights, shrink=config.shrink, ridge=config.ridge, others=config.others, grams="merged-grams")


LAYERWISE: Builders = {RegMeanPlusPlusConfig: _regmean_plus_plus}
