"""Settings of the merging methods; the methods themselves are in ``optmerge.merging.methods``.

A method's delta is made at scale 1: the scale of the papers (lambda, alpha) is the coefficient of the direction.
A new method is a class of settings here, in the module of its kind, and a builder beside its kin in
``optmerge.merging.methods``.
"""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from optmerge.config.methods.base import (
    Compat,
    Embeddings,
    Facts,
    MethodSettings,
    Need,
    Others,
    Scope,
    Searched,
    Share,
)
from optmerge.config.methods.basic import (
    AverageConfig,
    BasicConfig,
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
from optmerge.config.methods.elementwise import (
    BreadcrumbsConfig,
    BreadcrumbsTiesConfig,
    DellaConfig,
    DellaLinearConfig,
    ElementwiseConfig,
    MetaGptConfig,
    PcbConfig,
    SceConfig,
    VarmConfig,
)
from optmerge.config.methods.geometric import (
    Along,
    GeometricConfig,
    KarcherConfig,
    ModelStockConfig,
    MultiSlerpConfig,
    NuSlerpConfig,
    Origin,
    PassthroughConfig,
)
from optmerge.config.methods.layerwise import LayerwiseConfig, RegMeanPlusPlusConfig
from optmerge.config.methods.optimised import DogeConfig, OptimisedConfig, WidenConfig, Wudi2Config, WudiConfig
from optmerge.config.methods.own import CustomMethodConfig
from optmerge.config.methods.singular import DrmConfig, IsoCtsConfig, OpcmConfig, SingularConfig, StarConfig
from optmerge.config.methods.statistical import FisherConfig, LedConfig, MatsConfig, SensConfig, StatisticalConfig

__all__ = [
    "LINEAR_METHODS",
    "METHOD_CONFIGS",
    "STATISTICS_METHODS",
    "Along",
    "AverageConfig",
    "BreadcrumbsConfig",
    "BreadcrumbsTiesConfig",
    "Compat",
    "CustomMethodConfig",
    "DareConfig",
    "DareTiesConfig",
    "DellaConfig",
    "DellaLinearConfig",
    "DogeConfig",
    "DrmConfig",
    "Embeddings",
    "Facts",
    "FisherConfig",
    "IsoCConfig",
    "IsoCtsConfig",
    "KarcherConfig",
    "LedConfig",
    "LinearConfig",
    "MatsConfig",
    "MetaGptConfig",
    "MethodConfig",
    "MethodSettings",
    "ModelStockConfig",
    "MultiSlerpConfig",
    "Need",
    "NuSlerpConfig",
    "OpcmConfig",
    "Origin",
    "Others",
    "PassthroughConfig",
    "PcbConfig",
    "RegMeanConfig",
    "RegMeanPlusPlusConfig",
    "SceConfig",
    "Scope",
    "Searched",
    "SensConfig",
    "Share",
    "SlerpConfig",
    "StarConfig",
    "TaskArithmeticConfig",
    "TiesConfig",
    "TiesSplitConfig",
    "TsvMConfig",
    "VarmConfig",
    "WidenConfig",
    "Wudi2Config",
    "WudiConfig",
]

MethodConfig = Annotated[
    BasicConfig
    | GeometricConfig
    | ElementwiseConfig
    | SingularConfig
    | OptimisedConfig
    | StatisticalConfig
    | LayerwiseConfig
    | CustomMethodConfig,
    Field(discriminator="name"),
]

METHOD_CONFIGS: dict[str, type[MethodSettings]] = {
    config.method_name(): config
    for kind in (
        BasicConfig,
        GeometricConfig,
        ElementwiseConfig,
        SingularConfig,
        OptimisedConfig,
        StatisticalConfig,
        LayerwiseConfig,
    )
    for config in get_args(kind) or (kind,)
}
"""Of the methods that come with optmerge; a user's own is `CustomMethodConfig`."""
LINEAR_METHODS = tuple(name for name, config in METHOD_CONFIGS.items() if config.facts.linear)
"""Sums of one part per expert, so that each can be scaled."""
STATISTICS_METHODS = tuple(name for name, config in METHOD_CONFIGS.items() if config.facts.needs)
"""Need statistics of every expert, so that each must have a task."""
