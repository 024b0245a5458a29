"""Builders of the methods in `optmerge.config.methods.basic`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from optmerge.config.methods import (
    AverageConfig,
    DareConfig,
    DareTiesConfig,
    IsoCConfig,
    LinearConfig,
    RegMeanConfig,
    SlerpConfig,
    TaskArithmeticConfig,
    TiesConfig,
    TiesSplitConfig,
    TsvMConfig,
)
from optmerge.errors import ConfigError
from optmerge.merging.methods.base import Method
from optmerge.merging.methods.building import Builders, divided, weights_of
from optmerge.merging.methods.combination import Combination
from optmerge.merging.methods.drop import Dropped, Rescale
from optmerge.merging.methods.elementwise import Elementwise, Transform
from optmerge.merging.methods.frames import whitened_parts
from optmerge.merging.methods.linear import ModelSum
from optmerge.merging.methods.matrixwise import RegMean, Spectral
from optmerge.merging.methods.reduce import DisjointMean
from optmerge.merging.methods.spectrum import flatten_spectrum
from optmerge.merging.methods.sphere import COLLINEAR, arc
from optmerge.merging.methods.split import TiesSplit
from optmerge.merging.methods.trim import Trimmed, rounded, truncated


def _average(config: AverageConfig, experts: Sequence[str]) -> Method:
    return Elementwise((1 / len(experts),) * len(experts))


def _linear(config: LinearConfig, experts: Sequence[str]) -> Method:
    weights = weights_of(config.name, config.weights, experts)
    return Elementwise(divided(config.name, weights)) if config.normalize else ModelSum(weights)


def _task_arithmetic(config: TaskArithmeticConfig, experts: Sequence[str]) -> Method:
    return Elementwise(weights_of(config.name, config.weights, experts))


def _slerp(config: SlerpConfig, experts: Sequence[str]) -> Method:
    if len(experts) not in (1, 2):
        raise ConfigError(
            f"slerp is between two models, and there are {len(experts)} experts ({', '.join(experts)}). Give "
            "it two experts, or one, which is then interpolated with the base; or use average or linear."
        )
    return Combination(
        partial(arc, t=config.t, line=COLLINEAR, zero_is_orthogonal=config.compat == "mergekit"),
        weights=(1.0,) * len(experts),
        origin="zero",
        with_base=len(experts) == 1,
    )


def _dare(config: DareConfig, experts: Sequence[str]) -> Method:
    return Elementwise(weights_of(config.name, config.weights, experts), transforms=(_drop(config),))


def _ties_split(config: TiesSplitConfig, experts: Sequence[str]) -> Method:
    return TiesSplit(
        weights_of(config.name, config.weights, experts),
        transforms=(partial(Trimmed, density=config.density, scope=config.scope),),
        by_rows=config.scope == "row",
    )


def _iso_c(config: IsoCConfig, experts: Sequence[str]) -> Method:
    return Spectral(
        weights_of(config.name, config.weights, experts),
        finish=partial(flatten_spectrum, tolerance=config.tolerance),
        others=config.others,
        embeddings=config.embeddings,
    )


def _tsv_m(config: TsvMConfig, experts: Sequence[str]) -> Method:
    return Spectral(
        weights_of(config.name, config.weights, experts),
        frame=partial(whitened_parts, tolerance=config.tolerance, ranks=config.ranks),
        others=config.others,
        embeddings=config.embeddings,
    )


def _regmean(config: RegMeanConfig, experts: Sequence[str]) -> Method:
    weights = weights_of(config.name, config.weights, experts)
    divided(config.name, weights)
    return RegMean(weights, shrink=config.shrink, ridge=config.ridge, others=config.others)


def _ties(config: TiesConfig | DareTiesConfig, experts: Sequence[str]) -> Method:
    """Trim, elect, disjoint mean; after a random drop in the one of them."""
    weights = weights_of(config.name, config.weights, experts)
    divided(config.name, weights)
    mergekit = config.compat == "mergekit"
    density, normalize = config.density, config.normalize
    if density is None:
        density = 1.0 if mergekit else TiesConfig().density
    if normalize is None:
        normalize = not mergekit
    scope = config.scope or ("tensor" if mergekit else "model")
    trim = partial(Trimmed, density=density, scope=scope, count=truncated if mergekit else rounded)
    drop: tuple[Transform, ...] = (_drop(config),) if isinstance(config, DareTiesConfig) else ()
    return Elementwise(
        weights,
        transforms=(*drop, trim),
        reducer=DisjointMean(weights, normalize=normalize, weighted_votes=mergekit),
        by_rows=scope == "row",
    )


def _drop(config: DareConfig | DareTiesConfig) -> Transform:
    """The random drop of DARE."""
    by_compat: Rescale = "l1" if config.compat == "mergekit" else "inverse"
    return partial(Dropped, drop=config.drop, rescale=by_compat if config.rescale else "none", seed=config.seed)


BASIC: Builders = {
    AverageConfig: _average,
    LinearConfig: _linear,
    TaskArithmeticConfig: _task_arithmetic,
    SlerpConfig: _slerp,
    TiesConfig: _ties,
    DareConfig: _dare,
    DareTiesConfig: _ties,
    TiesSplitConfig: _ties_split,
    IsoCConfig: _iso_c,
    TsvMConfig: _tsv_m,
    RegMeanConfig: _regmean,
}
