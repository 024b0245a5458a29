"""A fixed random projection, for comparing hidden states in fewer dimensions than they have.

    small = projected(states, 128)                     # [..., H] -> [..., 128]

Squared distances are kept in expectation: with entries from N(0, 1 / H) the mean square of the projected difference of
two vectors has the mean square of their difference as its mean, and varies by about sqrt(2 / d) of it (Johnson &
Lindenstrauss 1984). The numbers depend on the two widths only, so that what an expert's states were projected with
months ago is what a merged model's are projected with today.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor


def projected(states: Tensor, dimensions: int) -> Tensor:
    """States [..., H] in ``dimensions`` dimensions, [..., d], in fp32 (fp64 for fp64); themselves where d >= H."""
    if dimensions >= states.shape[-1]:
        return states
    precise = states if states.dtype == torch.float64 else states.float()
    return precise @ _matrix(states.shape[-1], dimensions, precise.device).to(precise.dtype)


@lru_cache(maxsize=8)
def _matrix(width: int, dimensions: int, device: torch.device) -> Tensor:
    """fp32[H, d], drawn on the CPU whatever the device is."""
    generator = torch.Generator().manual_seed(0)
    drawn: Tensor = torch.randn(width, dimensions, generator=generator) / math.sqrt(width)
    return drawn.to(device)
