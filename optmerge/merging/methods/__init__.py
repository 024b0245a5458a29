"""Merging methods, each a composition of the stages that `base` lists.

method = build_method(TiesConfig(density=0.3), experts=("law", "code"))
method.prepare(models)
delta = method.delta(models, "model.layers.0.mlp.up_proj.weight")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from optmerge.config.methods import (
    AverageConfig,
    DareConfig,
    DareTiesConfig,
    IsoCConfig,
    LinearConfig,
    MethodConfig,
    RegMeanConfig,
    SlerpConfig,
    TaskArithmeticConfig,
    TiesConfig,
    TiesSplitConfig,
    TsvMConfig,
)
from optmerge.config.spectral import DirectionConfig, SpectralConfig
from optmerge.errors import ConfigError, did_you_mean
from optmerge.merging.methods.bands import Bands, Factors, components, flat_components
from optmerge.merging.methods.base import Method, Models, Need, TensorKind
from optmerge.merging.methods.drop import Dropped, Rescale
from optmerge.merging.methods.elementwise import Elementwise, Transform
from optmerge.merging.methods.frames import whitened_factors, whitened_parts
from optmerge.merging.methods.linear import ModelSum
from optmerge.merging.methods.matrixwise import RegMean, Spectral
from optmerge.merging.methods.reduce import DisjointMean
from optmerge.merging.methods.slerp import Slerp
from optmerge.merging.methods.spectrum import flatten_spectrum
from optmerge.merging.methods.split import TiesSplit
from optmerge.merging.methods.trim import Trimmed, rounded, truncated

__all__ = ["Method", "Models", "Need", "TensorKind", "build_method"]


def build_method(config: DirectionConfig, experts: Sequence[str]) -> Method:
    """The method that a configuration describes.

    Args:
        config: Its settings.
        experts: Names of the experts, in the order in which `Models` has them.

    Raises:
        ConfigError: A weight for an expert that is not there, weights that cannot be divided by, or a number of experts
            that the method is not for.
    """
    match config:
        case AverageConfig():
            return Elementwise((1 / len(experts),) * len(experts))
        case LinearConfig():
            weights = _weights(config.name, config.weights, experts)
            if not config.normalize:
                return ModelSum(weights)
            return Elementwise(_divided(config.name, weights))
        case TaskArithmeticConfig():
            return Elementwise(_weights(config.name, config.weights, experts))
        case SlerpConfig():
            if len(experts) not in (1, 2):
                raise ConfigError(
                    f"slerp is between two models, and there are {len(experts)} experts ({', '.join(experts)}). Give "
                    "it two experts, or one, which is then interpolated with the base; or use average or linear."
                )
            return Slerp(config.t, experts=len(experts))
        case TiesConfig() | DareTiesConfig():
            return _ties(config, experts)
        case DareConfig():
            return Elementwise(_weights(config.name, config.weights, experts), transforms=(_drop(config),))
        case TiesSplitConfig():
            return TiesSplit(
                _weights(config.name, config.weights, experts),
                transforms=(partial(Trimmed, density=config.density, scope=config.scope),),
                by_rows=config.scope == "row",
            )
        case IsoCConfig():
            return Spectral(
                _weights(config.name, config.weights, experts),
                finish=partial(flatten_spectrum, tolerance=config.tolerance),
                others=config.others,
                embeddings=config.embeddings,
            )
        case TsvMConfig():
            return Spectral(
                _weights(config.name, config.weights, experts),
                frame=partial(whitened_parts, tolerance=config.tolerance),
                others=config.others,
                embeddings=config.embeddings,
            )
        case RegMeanConfig():
            weights = _weights(config.name, config.weights, experts)
            _divided(config.name, weights)
            return RegMean(weights, shrink=config.shrink, ridge=config.ridge, others=config.others)
        case SpectralConfig():
            return _bands(config, experts)


def _bands(config: SpectralConfig, experts: Sequence[str]) -> Bands:
    """Bands of task vectors, or of a spectral method at its usual settings."""
    divided: dict[str, tuple[MethodConfig, Factors]] = {
        "task_arithmetic": (TaskArithmeticConfig(), components),
        "tsv-m": (TsvMConfig(), partial(whitened_factors, tolerance=TsvMConfig().tolerance)),
        "iso-c": (IsoCConfig(), partial(flat_components, tolerance=IsoCConfig().tolerance)),
    }
    method, factors = divided[config.of]
    return Bands(
        build_method(method, experts),
        factors,
        bands=config.bands,
        divide=config.divide,
        embeddings=config.embeddings,
        by_expert=config.by_expert,
    )


def _ties(config: TiesConfig | DareTiesConfig, experts: Sequence[str]) -> Method:
    """Trim, elect, disjoint mean; after a random drop in the one of them."""
    weights = _weights(config.name, config.weights, experts)
    _divided(config.name, weights)
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


def _weights(method: str, weights: Mapping[str, float] | None, experts: Sequence[str]) -> tuple[float, ...]:
    """One weight per expert; 1 where none is given."""
    given = weights or {}
    for name in given:
        if name not in experts:
            raise ConfigError(
                f"{method}.weights.{name}: there is no such expert; expected one of {', '.join(experts)}."
                f"{did_you_mean(name, experts)}"
            )
    return tuple(float(given.get(expert, 1.0)) for expert in experts)


def _divided(method: str, weights: tuple[float, ...]) -> tuple[float, ...]:
    """The weights divided by their sum."""
    total = sum(weights)
    if abs(total) < 1e-8:
        raise ConfigError(
            f"{method}.weights add up to {total:g}, and the merge is divided by their sum; give weights whose sum is "
            "not 0."
        )
    return tuple(weight / total for weight in weights)
