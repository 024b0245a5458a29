"""Builders of the methods in `optmerge.config.methods.singular`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from optmerge.config.methods import DrmConfig, IsoCtsConfig, OpcmConfig, StarConfig
from optmerge.errors import ConfigError, did_you_mean
from optmerge.merging.methods.base import Method
from optmerge.merging.methods.building import Builders, weights_of
from optmerge.merging.methods.common_space import iso_cts
from optmerge.merging.methods.decomposed import Decomposed
from optmerge.merging.methods.fold import ProjectedFold
from optmerge.merging.methods.frames import truncated_parts
from optmerge.merging.methods.jointly import Jointly
from optmerge.merging.methods.matrixwise import Spectral


def _star(config: StarConfig, experts: Sequence[str]) -> Method:
    return Spectral(
        weights_of(config.name, config.weights, experts),
        frame=partial(truncated_parts, share=config.share, tolerance=config.tolerance),
        others=config.others,
        embeddings=config.embeddings,
    )


def _iso_cts(config: IsoCtsConfig, experts: Sequence[str]) -> Method:
    return Jointly(
        weights_of(config.name, config.weights, experts),
        partial(iso_cts, common=config.common, tolerance=config.tolerance),
        others=config.others,
        embeddings=config.embeddings,
    )


def _drm(config: DrmConfig, experts: Sequence[str]) -> Method:
    return Decomposed(
        weights_of(config.name, config.weights, experts),
        direction=config.direction,
        drop=config.drop,
        tolerance=config.tolerance,
        others=config.others,
        embeddings=config.embeddings,
    )


def _opcm(config: OpcmConfig, experts: Sequence[str]) -> Method:
    return ProjectedFold(
        _positions(config, experts),
        share=config.share,
        tolerance=config.tolerance,
        others=config.others,
        embeddings=config.embeddings,
    )


def _positions(config: OpcmConfig, experts: Sequence[str]) -> tuple[int, ...]:
    """The order of the fold, as positions among the experts."""
    order = list(experts) if config.order is None else config.order
    for name in order:
        if name not in experts:
            raise ConfigError(
                f"{config.name}.order: there is no expert {name}; expected all of {', '.join(experts)}."
                f"{did_you_mean(name, experts)}"
            )
    if sorted(order) != sorted(experts):
        missing = [name for name in experts if name not in order]
        wrong = f"{', '.join(missing)} missing" if missing else "some more than once"
        raise ConfigError(
            f"{config.name}.order is {', '.join(order)}, with {wrong}; name every expert once: {', '.join(experts)}."
        )
    return tuple(list(experts).index(name) for name in order)


SINGULAR: Builders = {StarConfig: _star, IsoCtsConfig: _iso_cts, DrmConfig: _drm, OpcmConfig: _opcm}
