"""Models in memory, as methods see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from optmerge.config.methods import MethodSettings, Need
from optmerge.merging.methods import Method, TensorKind, build_method
from optmerge.models.lora_factors import LoraFactors

KINDS: dict[str, TensorKind] = {
    "embed.weight": TensorKind("embedding", False, (20, 6)),
    "position": TensorKind("embedding", False, (1, 5, 6)),
    "attention.weight": TensorKind("attention", False, (6, 6)),
    "attention.bias": TensorKind("attention", False, (6,)),
    "mlp.up.weight": TensorKind("mlp", False, (10, 6)),
    "mlp.conv1d.weight": TensorKind("mlp", True, (6, 10)),
    "mlp.experts": TensorKind("mlp", False, (3, 8, 5)),
    "patch.weight": TensorKind("embedding", False, (6, 3, 2, 2)),
    "mix.weight": TensorKind("attention", False, (6, 3, 4)),
    "norm.weight": TensorKind("norm", False, (6,)),
    "scale": TensorKind("other", False, ()),
    "one": TensorKind("other", False, (1,)),
    "column": TensorKind("other", False, (7, 1)),
    "empty": TensorKind("other", False, (0, 4)),
    "head.weight": TensorKind("head", False, (3, 6)),
}
"""One parameter of every kind and shape that is treated differently somewhere."""

ENTRYWISE: tuple[Need, ...] = ("fisher", "saliency", "base-saliency")
"""Statistics that have a number for every entry of a parameter."""


class ToyModels:
    """A base and experts as dictionaries of tensors."""

    def __init__(
        self,
        base: Mapping[str, torch.Tensor],
        experts: Mapping[str, Mapping[str, torch.Tensor]],
        *,
        kinds: Mapping[str, TensorKind] | None = None,
        statistics: Mapping[tuple[Need, str, str], torch.Tensor] | None = None,
        factors: Mapping[tuple[str, str], LoraFactors] | None = None,
    ) -> None:
        self._base = base
        self._experts = experts
        self._kinds = kinds or {}
        self.statistics = statistics or {}
        self._factors = factors or {}

    @property
    def experts(self) -> tuple[str, ...]:
        return tuple(self._experts)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._base)

    def base(self, name: str) -> torch.Tensor:
        return self._base[name]

    def expert(self, expert: str, name: str) -> torch.Tensor:
        return self._experts[expert][name]

    def kind(self, name: str) -> TensorKind:
        return self._kinds.get(name, TensorKind("other", False, tuple(self._base[name].shape)))

    def factors(self, expert: str, name: str) -> LoraFactors | None:
        return self._factors.get((expert, name))

    def statistic(self, need: Need, expert: str, name: str) -> torch.Tensor | None:
        return self.statistics.get((need, expert, name))

    def task_vector(self, expert: str, name: str) -> torch.Tensor:
        """expert - base, cast up first."""
        dtype = torch.float64 if self._base[name].dtype == torch.float64 else torch.float32
        return self._experts[expert][name].to(dtype) - self._base[name].to(dtype)


def random(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def every_kind(count: int, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> ToyModels:
    """``count`` random experts with a parameter of every kind, with every statistic that it has."""
    generator = torch.Generator().manual_seed(seed)
    names = [f"expert-{index}" for index in range(count)]
    base = {name: random(generator, *kind.shape, dtype=dtype) for name, kind in KINDS.items()}
    experts = {
        expert: {
            name: (value.double() + 0.3 * random(generator, *value.shape)).to(dtype) for name, value in base.items()
        }
        for expert in names
    }
    statistics: dict[tuple[Need, str, str], torch.Tensor] = {}
    for expert in names:
        for name, inputs, outputs in (
            ("attention.weight", 6, 6),
            ("mlp.up.weight", 6, 10),
            ("mlp.conv1d.weight", 6, 10),
        ):
            rows = random(generator, 40, inputs)
            statistics["grams", expert, name] = statistics["merged-grams", expert, name] = (rows.mT @ rows / 40).float()
            rows = random(generator, 40, outputs)
            statistics["output-grams", expert, name] = (rows.mT @ rows / 40).float()
        for name, value in base.items():
            for need in ENTRYWISE:
                statistics[need, expert, name] = random(generator, *value.shape).square().float()
        for other in names:
            distance = random(generator).abs().float()
            statistics["logit-distance", expert, other] = distance if other != expert else torch.zeros(())
    return ToyModels(base, experts, kinds=KINDS, statistics=statistics)


def of_deltas(
    deltas: Sequence[Mapping[str, torch.Tensor]], *, kinds: Mapping[str, TensorKind] | None = None
) -> ToyModels:
    """Experts with exactly these task vectors: the base is zero."""
    base = {name: torch.zeros_like(value) for name, value in deltas[0].items()}
    return ToyModels(base, {f"expert-{index}": delta for index, delta in enumerate(deltas)}, kinds=kinds)


def prepared(config: MethodSettings, models: ToyModels) -> Method:
    """A method that has seen the models."""
    method = build_method(config, models.experts)  # type: ignore[arg-type]
    method.prepare(models)
    return method


def merged(config: MethodSettings, models: ToyModels) -> dict[str, torch.Tensor]:
    """Parameter -> what a method adds to the base."""
    method = prepared(config, models)
    return {name: method.delta(models, name) for name in models.names}


def merged_vectors(
    config: MethodSettings, vectors: Sequence[torch.Tensor], kind: TensorKind | None = None
) -> torch.Tensor:
    """What a method makes of the experts' task vectors of one parameter."""
    models = of_deltas([{"w": vector} for vector in vectors], kinds={"w": kind} if kind else None)
    return merged(config, models)["w"]
