"""Merging methods, each a composition of the stages that `base` lists.

method = build_method(TiesConfig(density=0.3), experts=("law", "code"))
method.prepare(models)
delta = method.delta(models, "model.layers.0.mlp.up_proj.weight")
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from optmerge.config.methods import IsoCConfig, MethodConfig, TaskArithmeticConfig, TsvMConfig
from optmerge.config.spectral import DirectionConfig, SpectralConfig
from optmerge.merging.methods.bands import Bands, Factors, components, flat_components
from optmerge.merging.methods.base import Method, Models, TensorKind
from optmerge.merging.methods.basic import BASIC
from optmerge.merging.methods.building import Builders
from optmerge.merging.methods.entrywise import ELEMENTWISE
from optmerge.merging.methods.frames import whitened_factors
from optmerge.merging.methods.geometric import GEOMETRIC
from optmerge.merging.methods.layerwise import LAYERWISE
from optmerge.merging.methods.optimised import OPTIMISED
from optmerge.merging.methods.own import OWN_METHOD
from optmerge.merging.methods.singular import SINGULAR
from optmerge.merging.methods.statistical import STATISTICAL

__all__ = ["BUILDERS", "Method", "Models", "TensorKind", "build_method"]

BUILDERS: Builders = {
    **BASIC,
    **GEOMETRIC,
    **ELEMENTWISE,
    **SINGULAR,
    **OPTIMISED,
    **STATISTICAL,
    **LAYERWISE,
    **OWN_METHOD,
}
"""Class of settings -> what makes the method."""


def build_method(config: DirectionConfig, experts: Sequence[str]) -> Method:
    """The method that a configuration describes.

    Args:
        config: Its settings.
        experts: Names of the experts, in the order in which `Models` has them.

    Raises:
        ConfigError: A weight for an expert that is not there, weights that cannot be divided by, or a number of experts
            that the method is not for.
    """
    if isinstance(config, SpectralConfig):
        return _bands(config, experts)
    return BUILDERS[type(config)](config, experts)


def _bands(config: SpectralConfig, experts: Sequence[str]) -> Bands:
    """Bands of task vectors, or of a spectral method at its usual settings."""
    shared = TsvMConfig().tolerance
    divided: dict[str, tuple[MethodConfig, Factors]] = {
        "task_arithmetic": (TaskArithmeticConfig(), partial(components, tolerance=shared)),
        "tsv-m": (TsvMConfig(), partial(whitened_factors, tolerance=shared)),
        "iso-c": (IsoCConfig(), partial(flat_components, tolerance=IsoCConfig().tolerance)),
    }
    method, factors = divided[config.of]
    return Bands(
        build_method(method, experts),
        factors,
        bands=config.bands,
        divide=config.divide,
        scale=config.scale,
        embeddings=config.embeddings,
        by_expert=config.by_expert,
    )
