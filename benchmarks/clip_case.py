"""The case that `gradient` and `growth` measure, the same for every side: inputs, zero-shot heads, loss, settings.

Two workers run it, each in an environment of its own, so this module imports torch and nothing of optmerge.

    case = Case.of(tasks=4, batch=16, image=224, hidden=768)
    loss = case.loss(model, task=0)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

CLASSES = 10
LOGIT_SPREAD = 2.0  # standard deviation of a random head's logits: neither certain nor uniform
LEARNING_RATE = 1e-3  # FusionBench's layer-wise AdaMerging
START = 0.3  # likewise
EPSILON = 1e-8  # in its entropy's logarithm


@dataclass(frozen=True, slots=True)
class Case:
    """Inputs of K tasks.

    Attributes:
        shape: Of a task's batch of images, (B, 3, H, W).
        heads: One fixed zero-shot head a task, unit columns, [hidden, classes].
    """

    shape: tuple[int, int, int, int]
    heads: list[torch.Tensor]

    @classmethod
    def of(cls, *, tasks: int, batch: int, image: int, hidden: int) -> Case:
        """The case of a number of tasks; a function of its arguments alone."""
        generator = torch.Generator().manual_seed(tasks)
        heads = [torch.randn(hidden, CLASSES, generator=generator) for _ in range(tasks)]
        return cls((batch, 3, image, image), [head / head.norm(dim=0) for head in heads])

    def images(self, task: int) -> torch.Tensor:
        """A task's batch, made when it is wanted as a data loader would, so that no side keeps a batch per task."""
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(task))

    def loss(self, model: Callable[..., Any], task: int) -> torch.Tensor:
        """Mean entropy of a task's predictions (Yang et al. 2024, equation 6, with FusionBench's epsilon)."""
        features = model(pixel_values=self.images(task)).pooler_output
        scale = LOGIT_SPREAD * features.shape[-1] ** 0.5
        logits = scale * (features / features.norm(dim=-1, keepdim=True)) @ self.heads[task]
        shares = torch.softmax(logits, dim=-1)
        return -torch.sum(shares * torch.log(shares + EPSILON), dim=-1).mean()
