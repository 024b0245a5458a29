"""Activation checkpointing of models in evaluation mode: a layer's forward pass is run again in the backward pass.

    checkpointing = Checkpointing(models)          # ConfigError where a model has no layer that can be
    with checkpointing:
        model(**inputs).logits.sum().backward()

transformers checkpoints in training mode only, which would also turn dropout on. Here each of its checkpointable layers
gets a forward of its own for as long as the block lasts, and no mode changes. Nothing is random, so the second forward
pass gives the bits of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from types import TracebackType
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from optmerge.errors import ConfigError


class Checkpointing:
    """A context in which the layers of some models are checkpointed (non-reentrant)."""

    def __init__(self, models: Iterable[nn.Module]) -> None:
        """Find the layers.

        Args:
            models: Resident models; they may share layers.

        Raises:
            ConfigError: One of them has no layer that transformers can checkpoint.
        """
        from transformers.modeling_layers import GradientCheckpointingLayer

        self._layers: dict[int, nn.Module] = {}
        for model in models:
            found = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
            if not found:
                raise ConfigError(
                    f"checkpointing is true, and transformers cannot checkpoint any layer of {type(model).__name__}. "
                    "Set checkpointing: false, and batch_tokens lower if memory is short."
                )
            self._layers |= {id(layer): layer for layer in found}

    def __enter__(self) -> None:
        for layer in self._layers.values():
            layer.forward = partial(_again, layer.forward)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for layer in self._layers.values():
            del layer.forward


def _again(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A layer's ``forward``, checkpointed; without a cache, which a second pass would write into a second time."""
    from transformers import Cache

    args = tuple(None if isinstance(value, Cache) else value for value in args)
    kwargs = {name: None if isinstance(value, Cache) else value for name, value in kwargs.items()}
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
