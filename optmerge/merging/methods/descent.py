"""Adam without a loss: from gradients to steps, in buffers that are made once.

adam = Adam(torch.zeros(8, 4), lr=1e-4)
for _ in range(100):
    gradient = ...          # may be one buffer, written over
    position += adam(gradient)
"""

from __future__ import annotations

import torch


class Adam:
    """Steps of Adam (Kingma and Ba 2015, algorithm 1; betas .9 and .999, epsilon 1e-8), from zero moments.

    The steps are handed out and not taken, so that a caller can project them.

    Args:
        like: A tensor of the gradients' shape, dtype and device; not looked at otherwise.
        lr: Learning rate: about the size of a step's entries.
    """

    def __init__(self, like: torch.Tensor, *, lr: float) -> None:
        self._step = torch.zeros_like(like, memory_format=torch.contiguous_format)
        self._adam = torch.optim.Adam([self._step], lr=lr, fused=True)  # one pass over the memory

    def __call__(self, gradient: torch.Tensor) -> torch.Tensor:
        """What is to be added to the parameters; a buffer that the next call overwrites, and the caller may change."""
        self._step.zero_()
        self._step.grad = gradient
        self._adam.step()
        return self._step
