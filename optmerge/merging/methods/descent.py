"""Optimisers without a loss: from gradients to steps, in buffers that are made once.

    adam = Adam(torch.zeros(8, 4), lr=1e-4)
    for _ in range(100):
        gradient = ...          # may be one buffer, written over
        position += adam(gradient)

Those of torch.optim take their steps themselves, make new buffers in each, and load a compiler before the first.
"""

from __future__ import annotations

import math

import torch

_MEAN, _SQUARE, _EPSILON = 0.9, 0.999, 1e-8


class Adam:
    """Steps of Adam (Kingma and Ba 2015, algorithm 1; betas .9 and .999, epsilon 1e-8), from zero moments.

    The steps are handed out and not taken, so that a caller can project them.

    Args:
        like: A tensor of the gradients' shape, dtype and device; not looked at otherwise.
        lr: Learning rate: about the size of a step's entries.
    """

    def __init__(self, like: torch.Tensor, *, lr: float) -> None:
        self.lr = lr
        self._steps = 0
        self._mean, self._square, self._step = (
            torch.zeros_like(like, memory_format=torch.contiguous_format) for _ in range(3)
        )

    def __call__(self, gradient: torch.Tensor) -> torch.Tensor:
        """What is to be added to the parameters; a buffer that the next call overwrites, and the caller may change."""
        self._steps += 1
        self._mean.lerp_(gradient, 1 - _MEAN)
        self._square.mul_(_SQUARE).addcmul_(gradient, gradient, value=1 - _SQUARE)
        torch.sqrt(self._square, out=self._step)
        self._step.div_(math.sqrt(1 - _SQUARE**self._steps)).add_(_EPSILON)
        torch.div(self._mean, self._step, out=self._step)
        return self._step.mul_(-self.lr / (1 - _MEAN**self._steps))


class Momentum:
    """Steps of gradient descent with momentum (Polyak 1964), undamped: v = momentum v + gradient, step = -lr v.

    Args:
        like: See `Adam`.
        lr: Learning rate.
        momentum: 0 up to 1.
    """

    def __init__(self, like: torch.Tensor, *, lr: float, momentum: float) -> None:
        self.lr = lr
        self.momentum = momentum
        self._velocity = torch.zeros_like(like, memory_format=torch.contiguous_format)
        self._step = torch.empty_like(self._velocity)

    def __call__(self, gradient: torch.Tensor) -> torch.Tensor:
        """See `Adam`."""
        self._velocity.mul_(self.momentum).add_(gradient)
        return torch.mul(self._velocity, -self.lr, out=self._step)
