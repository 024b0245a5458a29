"""Builders of the methods in `optmerge.config.methods.elementwise`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from optmerge.config.methods import (
    BreadcrumbsConfig,
    BreadcrumbsTiesConfig,
    DellaConfig,
    DellaLinearConfig,
    MetaGptConfig,
    PcbConfig,
    SceConfig,
    VarmConfig,
)
from optmerge.merging.methods.base import Method
from optmerge.merging.methods.building import Builders, divided, weights_of
from optmerge.merging.methods.crumbs import Crumbs, mergekit_ranks, paper_ranks
from optmerge.merging.methods.drop import Rescale
from optmerge.merging.methods.elementwise import Elementwise
from optmerge.merging.methods.energy import EnergyShared
from optmerge.merging.methods.pcb import Pcb
from optmerge.merging.methods.rank_drop import RankDropped
from optmerge.merging.methods.reduce import DisjointMean, Reducer
from optmerge.merging.methods.sce import Sce


def _elected(config: BreadcrumbsTiesConfig | DellaConfig, weights: tuple[float, ...]) -> Reducer:
    """Sign election and what agrees with it."""
    divided(config.name, weights)
    return DisjointMean(weights, normalize=config.normalize, weighted_votes=config.compat == "mergekit")


def _breadcrumbs(config: BreadcrumbsConfig | BreadcrumbsTiesConfig, experts: Sequence[str]) -> Method:
    weights = weights_of(config.name, config.weights, experts)
    mergekit = config.compat == "mergekit"
    scope = config.scope or ("tensor" if mergekit else "row")
    crumbs = partial(
        Crumbs,
        density=config.density,
        outliers=config.outliers,
        scope=scope,
        ranks=mergekit_ranks if mergekit else paper_ranks,
    )
    return Elementwise(
        weights,
        transforms=(crumbs,),
        reducer=_elected(config, weights) if isinstance(config, BreadcrumbsTiesConfig) else None,
        by_rows=scope == "row",
    )


def _della(config: DellaConfig | DellaLinearConfig, experts: Sequence[str]) -> Method:
    weights = weights_of(config.name, config.weights, experts)
    by_compat: Rescale = "l1" if config.compat == "mergekit" else "inverse"
    drop = partial(
        RankDropped,
        drop=config.drop,
        epsilon=config.epsilon,
        rescale=by_compat if config.rescale else "none",
        seed=config.seed,
    )
    return Elementwise(
        weights,
        transforms=(drop,),
        reducer=_elected(config, weights) if isinstance(config, DellaConfig) else None,
        by_rows=True,
    )


def _pcb(config: PcbConfig, experts: Sequence[str]) -> Method:
    weights = weights_of(config.name, config.weights, experts)
    return Pcb(weights, density=config.density, clip=config.clip, raw=config.balance == "raw")


def _sce(config: SceConfig, experts: Sequence[str]) -> Method:
    return Sce(
        len(experts),
        density=config.density,
        everywhere=config.selected == "everywhere",
        mergekit=config.compat == "mergekit",
    )


def _varm(config: VarmConfig, experts: Sequence[str]) -> Method:
    weights = weights_of(config.name, config.weights, experts)
    return Elementwise(weights, transforms=(partial(EnergyShared, scope="tensor"),))


def _metagpt(config: MetaGptConfig, experts: Sequence[str]) -> Method:
    weights = weights_of(config.name, config.weights, experts)
    return Elementwise(weights, transforms=(partial(EnergyShared, scope="model"),))


ELEMENTWISE: Builders = {
    BreadcrumbsConfig: _breadcrumbs,
    BreadcrumbsTiesConfig: _breadcrumbs,
    DellaConfig: _della,
    DellaLinearConfig: _della,
    PcbConfig: _pcb,
    SceConfig: _sce,
    VarmConfig: _varm,
    MetaGptConfig: _metagpt,
}
