"""The term ``hidden-alignment``: how far the merged model's hidden states are from the expert's.

    term = HiddenAlignment(HiddenAlignmentConfig(layers=[0.5, 1.0]))
    term.layers(24)                                  # (11, 23)
    term.per_example(outputs, batch, teacher)

It says something about a model that classes cannot: how it gets to them. Beside ``expert-kl`` it gives a gradient where
predictions agree already; alone it does not know which differences matter.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from optmerge.calibration.batches import Batch
from optmerge.config.objectives import HiddenAlignmentConfig
from optmerge.errors import ConfigError
from optmerge.objective.base import ModelTerm, Need, attended, needed, precise
from optmerge.objective.outputs import Outputs
from optmerge.objective.projection import projected
from optmerge.objective.teacher import TeacherBatch


class HiddenAlignment(ModelTerm):
    """Mean over layers of the mean squared difference of their outputs, over attended positions and features.

    Positions are all that the model attends to, a language model's prompt included; every example has the same say.
    """

    name: ClassVar[str] = "hidden-alignment"
    needs: ClassVar[frozenset[Need]] = frozenset({"teacher", "hidden"})
    differentiable: ClassVar[bool] = True
    higher_is_better: ClassVar[bool] = False
    unit: ClassVar[str] = "activation squared"
    paper: ClassVar[str] = "Expert Merging, ICLR 2026, the hidden-state loss"

    config: HiddenAlignmentConfig

    def __init__(self, config: HiddenAlignmentConfig) -> None:
        super().__init__(config)
        self._asked: tuple[int, ...] = ()  # the layers that were last asked for; others may be there for other terms

    def layers(self, count: int) -> tuple[int, ...]:
        """See `ModelTerm.layers`.

        Raises:
            ConfigError: The model has no such layer.
        """
        named = [0.5] if self.config.layers == "middle" else self.config.layers
        for layer in named:
            if isinstance(layer, int) and layer >= count:
                raise ConfigError(
                    f"objective: hidden-alignment names layer {layer}, and the model has {count} layers, 0 to "
                    f"{count - 1}. Name one of these, or a depth such as 0.5 or 1.0."
                )
        self._asked = tuple(sorted({layer if isinstance(layer, int) else _at_depth(layer, count) for layer in named}))
        return self._asked

    def per_example(self, outputs: Outputs, batch: Batch, teacher: TeacherBatch | None) -> Tensor:
        """See `ModelTerm.per_example`.

        Raises:
            ValueError: The expert's hidden states are missing, or the model's.
        """
        known = needed(teacher, self.name).hidden
        layers = self._asked or tuple(outputs.hidden)
        if not layers or not (set(layers) <= outputs.hidden.keys() & known.keys()):
            raise ValueError(f"term {self.name} needs the hidden states of model and expert, and not all were given")
        return torch.stack([_distance(outputs, layer, known[layer], batch) for layer in layers]).mean(0)


def _distance(outputs: Outputs, layer: int, expert: Tensor, batch: Batch) -> Tensor:
    """[B, T, H] and the expert's attended places [P, H], or [P, d] where they are projected -> [B]."""
    mask = attended(batch, outputs.hidden[layer], decoder=layer in outputs.decoder)
    states = precise(projected(outputs.hidden[layer], expert.shape[-1]))
    aligned = torch.zeros_like(states).masked_scatter(mask[..., None], expert.to(states.dtype))
    squares = torch.where(mask[..., None], states - aligned, 0.0).square().mean(-1)
    return squares.sum(1) / mask.sum(1)


def _at_depth(share: float, count: int) -> int:
    """The layer that ends this share of ``count`` layers."""
    return max(0, math.ceil(round(share * count, 9)) - 1)
