"""Task vectors weighed layer by layer by how sensitive their experts are (stage E; Sens-Merging, Liu et al. 2025).

    alpha_i[l] = S_i[l] / sqrt(sum_l S_i[l]^2)      S_i[l]: sum of |theta dL/dtheta| over layer l
    d_i        = D_i / sum_i D_i                    D_i: distance of model i's logits from the others', on their tasks
    sigma_i[l] = softmax over i of +- alpha_i[l] d_i / T
    delta      = sum_i K sigma_i[l] tau_i

This follows a re-implementation by others, the authors having published none. What is outside of the layers is weighed
by what it is for: all embeddings together, all heads together, and so on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping

import torch

from optmerge.merging.methods.base import Models
from optmerge.merging.methods.vectors import Chunk, TaskVectors
from optmerge.records import Progress

Layer = Hashable


class Weighed(TaskVectors):
    """Task vectors times K sigma_i of their layer.

    Args:
        vectors: What is weighed.
        temperature: T, above 0.
        sign: 1 if models far from the other experts get more, -1 if less.
    """

    def __init__(self, vectors: TaskVectors, *, temperature: float, sign: float) -> None:
        self.vectors = vectors
        self.models = vectors.models
        self.by_rows = vectors.by_rows
        self.temperature = temperature
        self.sign = sign
        self._factors: Mapping[Layer, Mapping[str, float]] = {}

    def prepare(self, progress: Progress | None = None) -> None:
        """See `TaskVectors.prepare`."""
        self.vectors.prepare(progress)
        scale = {expert: self.sign * share for expert, share in distance_shares(self.models).items()}
        self._factors = softmax_factors(sensitivities(self.models, progress), scale, self.temperature)

    def chunks(self, expert: str, name: str) -> Iterator[Chunk]:
        """See `TaskVectors.chunks`."""
        if not self._factors:
            self.prepare()
        factor = self._factors[layer_of(self.models, name)][expert]
        for chunk in self.vectors.chunks(expert, name):
            chunk.values.mul_(factor)
            yield chunk


def layer_of(models: Models, name: str) -> Layer:
    """What a parameter shares its weight with."""
    kind = models.kind(name)
    return kind.role if kind.layer is None else kind.layer


def sensitivities(models: Models, progress: Progress | None = None) -> dict[str, dict[Layer, float]]:
    """alpha: expert -> layer -> its share of sensitivity, of norm 1 over layers; 0 where nothing has any."""
    found = {}
    for done, expert in enumerate(models.experts):
        sums: dict[Layer, float] = defaultdict(float)
        for name in models.names:
            saliency = models.statistic("saliency", expert, name)
            sums[layer_of(models, name)] += 0.0 if saliency is None else float(saliency.sum(dtype=torch.float64))
        norm = sum(value**2 for value in sums.values()) ** 0.5 or 1.0
        found[expert] = {layer: value / norm for layer, value in sums.items()}
        if progress:
            progress("sensitivities", done + 1, len(models.experts))
    return found


def distance_shares(models: Models) -> dict[str, float]:
    """d: expert -> its share of all distances of logits; 0 where there are none, as of one expert."""
    sums = {}
    for expert in models.experts:
        others = [other for other in models.experts if other != expert]
        found = [models.statistic("logit-distance", other, expert) for other in others]
        sums[expert] = sum(float(distance) for distance in found if distance is not None)
    total = sum(sums.values()) or 1.0
    return {expert: value / total for expert, value in sums.items()}


def softmax_factors(
    alphas: Mapping[str, Mapping[Layer, float]], scale: Mapping[str, float], temperature: float
) -> dict[Layer, dict[str, float]]:
    """K sigma: layer -> expert -> its factor. They add up to K in every layer."""
    experts = list(alphas)
    factors = {}
    for layer in alphas[experts[0]]:
        scores = [alphas[expert][layer] * scale[expert] / temperature for expert in experts]
        shares = torch.softmax(torch.tensor(scores, dtype=torch.float64), 0) * len(experts)
        factors[layer] = dict(zip(experts, shares.tolist(), strict=True))
    return factors
