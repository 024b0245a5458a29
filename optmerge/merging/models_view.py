"""A family as merging methods see it (`optmerge.merging.methods.base.Models`)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Protocol

import torch

from optmerge.config.methods import Need
from optmerge.merging.methods.base import TensorKind
from optmerge.models.lora_factors import LoraFactors

if TYPE_CHECKING:
    from optmerge.models.family import Family


class Statistics(Protocol):
    """What calibration data says about the experts' layers."""

    def key(self, needs: Collection[Need]) -> str:
        """A hash of the data and of everything else that these statistics depend on."""

    def statistic(self, need: Need, expert: str, name: str) -> torch.Tensor | None:
        """See `optmerge.merging.methods.base.Models.statistic`."""

    def layer_by_layer(self) -> LayerByLayer:
        """A merge that begins with nothing merged."""


class LayerByLayer(Protocol):
    """A merge that goes on layer by layer in a model in memory, and statistics that depend on the merge so far."""

    def stages(self) -> Iterator[tuple[str, ...]]:
        """Parameters, some at a time, all in all each one once; all of them are settled before more are asked for."""

    def statistic(self, need: Need, expert: str, name: str) -> torch.Tensor | None:
        """See `optmerge.merging.methods.base.Models.statistic`; of the stage that came last."""

    def settle(self, name: str, delta: torch.Tensor) -> None:
        """Put a parameter of that stage, base and delta, into the model."""


class FamilyModels:
    """Base, experts and statistics of a family."""

    def __init__(self, family: Family, statistics: Statistics | LayerByLayer | None = None) -> None:
        self._family = family
        self._statistics = statistics

    @property
    def experts(self) -> tuple[str, ...]:
        """Names of the experts, in the order of the search file."""
        return tuple(self._family.experts)

    @property
    def names(self) -> tuple[str, ...]:
        """The merged parameters, in module order."""
        return tuple(self._family.parameters)

    def base(self, name: str) -> torch.Tensor:
        """A parameter of the base, in module layout and stored dtype."""
        return self._family.read("base", name)

    def expert(self, expert: str, name: str) -> torch.Tensor:
        """A parameter of an expert, in module layout and stored dtype."""
        return self._family.read(expert, name)

    def kind(self, name: str) -> TensorKind:
        """What a parameter is."""
        parameter = self._family.parameters[name]
        return TensorKind(parameter.role.kind, parameter.input_first, parameter.shape, parameter.role.layer)

    def factors(self, expert: str, name: str) -> LoraFactors | None:
        """See `optmerge.merging.methods.base.Models.factors`."""
        form = self._family.delta_form(expert, name)
        return None if isinstance(form, str) else form

    def statistic(self, need: Need, expert: str, name: str) -> torch.Tensor | None:
        """See `optmerge.merging.methods.base.Models.statistic`."""
        assert self._statistics is not None, "a method that needs statistics was prepared without them"
        return self._statistics.statistic(need, expert, name)
