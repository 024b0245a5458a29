"""The scan for NaN and Inf: which tensors of a checkpoint hold values that no merge could survive.

A checkpoint is scanned once; the result is remembered in the cache by its content hash.

    bad = find_nonfinite(checkpoint, checkpoint.tensors)
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from optmerge.models.adapter import AdapterCheckpoint
from optmerge.models.cache import recall, remember
from optmerge.models.checkpoint import Checkpoint

_CHUNK = 1 << 20  # elements


def find_nonfinite(checkpoint: Checkpoint, names: Iterable[str]) -> list[str]:
    """The tensors among ``names`` (on disk) that hold NaN or Inf, in their order."""
    digest = checkpoint.sha256()
    known = recall("values", digest)
    if known is None:
        bad = _scan(checkpoint)
        remember("values", digest, {"nonfinite": bad})
    else:
        bad = list(known["nonfinite"])
    wanted = set(bad)
    return [name for name in names if name in wanted]


def _scan(checkpoint: Checkpoint) -> list[str]:
    """The tensors with NaN or Inf; of a base with an adapter, the base's are scanned once for all its adapters."""
    if not isinstance(checkpoint, AdapterCheckpoint):
        return [name for name in checkpoint.tensors if not is_finite(checkpoint.read(name))]
    inherited = set(find_nonfinite(checkpoint.base, checkpoint.base.tensors))
    return [
        name
        for name in checkpoint.tensors
        if (name in inherited if checkpoint.is_as_finite_as_base(name) else not is_finite(checkpoint.read(name)))
    ]


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor of any dtype and size is free of NaN and Inf, at the memory of one chunk."""
    if not tensor.dtype.is_floating_point or tensor.numel() == 0:
        return True
    flat = tensor.reshape(-1)
    for lo in range(0, flat.numel(), _CHUNK):
        chunk = flat[lo : lo + _CHUNK]
        if chunk.dtype.itemsize == 1:
            chunk = chunk.to(torch.float32)
        low, high = torch.aminmax(chunk)  # one pass without a temporary; NaN wins over every number
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            return False
    return True
