"""What mergekit would use for every tensor: models, base, and the value of each parameter.

Where a tensor stands decides about gradients: layer i of a slice of n layers is at i / (n - 1) (at 1 where n is 1), and
everything outside the layers at 0. What comes before the layers has the first slice's settings, what comes after them
the last slice's.

    tensors = {"model.norm.weight": Place("after")}
    values = values_of(config, specs, tensors, num_layers=4)
    values["model.norm.weight"].own["org/math"]["weight"]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from optmerge.errors import ConfigError
from optmerge.importers.mergekit_config import MergekitConfig, Slice, Source
from optmerge.importers.mergekit_settings import Parameter, Value, lookup


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor stands.

    Attributes:
        where: ``before`` the layers, in a ``layer``, ``after`` them, or ``outside`` where nobody knows on which side.
        layer: Which layer; None outside.
    """

    where: Literal["before", "layer", "after", "outside"]
    layer: int | None = None


@dataclass(frozen=True)
class TensorValues:
    """What one tensor is made of.

    Attributes:
        base: Reference of the base, None where none is among the models.
        models: References of the models, in mergekit's order.
        shared: Parameter -> value.
        own: Model -> parameter -> value.
    """

    base: str | None
    models: tuple[str, ...]
    shared: Mapping[str, Value]
    own: Mapping[str, Mapping[str, Value]]

    @property
    def experts(self) -> tuple[str, ...]:
        """The models without the base."""
        return tuple(model for model in self.models if model != self.base)


def values_of(
    config: MergekitConfig, parameters: Sequence[Parameter], places: Mapping[str, Place], *, num_layers: int
) -> dict[str, TensorValues]:
    """Every tensor's values.

    Args:
        config: The configuration.
        parameters: Those of its method.
        places: Tensor -> where it stands.
        num_layers: Layers of each of the models.

    Raises:
        ConfigError: The output has other layers than the models, a slice is of another length for each source, a
            parameter is missing or malformed, or nobody knows which slice a tensor outside the layers belongs to.
    """
    slices = [_filled(part, config, num_layers) for part in config.slices]
    in_slice: dict[int, tuple[int, float]] = {}
    for number, part in enumerate(slices):
        first, end = _same_layers(part, number)
        if first != len(in_slice):
            raise ConfigError(
                f"slices[{number}] puts layer {first} where layer {len(in_slice)} of the merged model is. A recipe "
                "keeps every layer in its place and their number; stacks of repeated, moved or dropped layers are "
                "another architecture, which mergekit can make first, as a base for optmerge."
            )
        length = end - first
        in_slice |= {
            layer: (number, (layer - first) / (length - 1) if length > 1 else 1.0) for layer in range(first, end)
        }
    if len(in_slice) != num_layers:
        raise ConfigError(
            f"The slices have {len(in_slice)} layers and the models {num_layers}. A recipe keeps all layers of the "
            "base; make the shorter or deeper model with mergekit first, as a base for optmerge."
        )
    # mergekit 0.1.5 gives what follows the layers as many sources as the first slice has, in the last one's order.
    behind = replace(slices[-1], sources=slices[-1].sources[: len(slices[0].sources)])
    found = {}
    for tensor, place in places.items():
        if place.layer is not None:
            number, at = in_slice[place.layer]
            found[tensor] = _values(slices[number], config, parameters, tensor, at)
            continue
        ends = [_values(part, config, parameters, tensor, 0.0) for part in (slices[0], behind)]
        if place.where == "outside" and ends[0] != ends[1]:
            raise ConfigError(
                f"The tensor {tensor} stands outside the layers, the first and the last slice have different values "
                "for it, and for this architecture it is not known which of them mergekit takes. Give both slices the "
                f"same with a filter: `[{{filter: {tensor}, value: ...}}, {{value: ...}}]`."
            )
        found[tensor] = ends[-1 if place.where == "after" else 0]
    return found


def _filled(part: Slice, config: MergekitConfig, num_layers: int) -> Slice:
    """The slice with its layers, and with the base as a last source in the ``models`` form, as mergekit adds it."""
    sources = [Source(s.model, s.layers or (0, num_layers), s.parameters) for s in part.sources]
    whole = all(source.layers is None for source in part.sources)
    if whole and config.base is not None and config.base not in [source.model for source in sources]:
        sources.append(Source(config.base, (0, num_layers), {}))
    return Slice(tuple(sources), part.base, part.parameters)


def _same_layers(part: Slice, number: int) -> tuple[int, int]:
    ranges = [source.layers for source in part.sources if source.layers is not None]
    if len(set(ranges)) != 1:
        shown = ", ".join(f"{source.model} {list(source.layers or ())}" for source in part.sources)
        raise ConfigError(
            f"slices[{number}] merges different layers of its sources with one another ({shown}), and a recipe merges "
            "a tensor with the same tensor of the other models. Give all sources the same layer_range."
        )
    return ranges[0]


def _values(
    part: Slice, config: MergekitConfig, parameters: Sequence[Parameter], tensor: str, at: float
) -> TensorValues:
    base = part.base or config.base
    common = (part.parameters, config.module, config.parameters)
    models = tuple(source.model for source in part.sources)
    if base not in models:
        base = None  # mergekit knows a base only among the sources of a slice
    shared = {p.name: lookup(p, common, tensor, at=at) for p in parameters if p.scope == "shared"}
    own = {
        source.model: {
            p.name: lookup(p, (source.parameters, *common), tensor, at=at)
            for p in parameters
            if p.scope == "input" or (p.scope == "non-base" and source.model != base)
        }
        for source in part.sources
    }
    return TensorValues(base, models, shared, own)
