"""A checkpoint in memory, and one that was saved by transformers and read whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file


class MemoryCheckpoint:
    """Tensors by disk name; all that `checkpoint_map` and `CheckpointMap.read` ask of a checkpoint."""

    def __init__(self, values: Mapping[str, torch.Tensor], reference: str = "memory") -> None:
        self.reference = reference
        self.values = dict(values)
        self.tensors = {
            name: SimpleNamespace(name=name, shape=tuple(value.shape), dtype=value.dtype, nbytes=value.nbytes)
            for name, value in self.values.items()
        }

    def read(self, name: str) -> torch.Tensor:
        return self.values[name]


class HeaderCheckpoint:
    """Names and shapes alone: reading a value would be an error."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], reference: str = "headers") -> None:
        self.reference = reference
        self.tensors = {
            name: SimpleNamespace(name=name, shape=shape, dtype=torch.bfloat16, nbytes=2 * math.prod(shape))
            for name, shape in shapes.items()
        }


def saved(folder: Path) -> MemoryCheckpoint:
    values: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        values |= load_file(file)
    return MemoryCheckpoint(values, str(folder))
