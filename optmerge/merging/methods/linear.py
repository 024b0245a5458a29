"""The weighted sum of whole models, without dividing by the weights (stage F)."""

from __future__ import annotations

import torch

from optmerge.merging.methods.base import Method, Models
from optmerge.merging.methods.elementwise import Elementwise


class ModelSum(Method):
    """sum_i w_i theta_i. As a delta that is sum_i w_i tau_i + (sum_i w_i - 1) theta_0."""

    def __init__(self, weights: tuple[float, ...]) -> None:
        super().__init__(weights)
        self.keeps_base = sum(weights) == 1
        self._task_vectors = Elementwise(weights)

    def delta(self, models: Models, name: str) -> torch.Tensor:
        """See `Method.delta`."""
        delta = self._task_vectors.delta(models, name)
        return delta.add_(models.base(name), alpha=sum(self.weights) - 1)
