"""The scan for NaN and Inf: which tensors of a checkpoint hold values that no merge could survive.

A checkpoint is scanned once; the result is remembered in the cache by its content hash.

    bad = find_nonfinite(checkpoint, checkpoint.tensors)
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from optmerge.models.cache import recall, remember
from optmerge.models.checkpoint import Checkpoint

_CHUNK = 1 << 20  # elements


def find_nonfinite(checkpoint: Checkpoint, names: Iterable[str]) -> list[str]:
    """The tensors among ``names`` (on disk) that hold NaN or Inf, in their order."""
    digest = checkpoint.sha256()
    known = recall("values", digest)
    if known is None:
        bad = [name for name in checkpoint.tensors if not is_finite(checkpoint.read(name))]
        remember("values", digest, {"nonfinite": bad})
    else:
        bad = list(known["nonfinite"])
    wanted = set(bad)
    return [name for name in names if name in wanted]


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
