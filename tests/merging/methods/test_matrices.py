"""Experts of low rank: every spectral method is the same with their factors as with their exact products, and no more.

Nothing of what is rounding in an adapter's checkpoint may be raised to the size of what was learnt.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from optmerge.config.methods import (
    DrmConfig,
    IsoCConfig,
    IsoCtsConfig,
    MethodSettings,
    OpcmConfig,
    StarConfig,
    TsvMConfig,
    Wudi2Config,
)
from optmerge.config.spectral import SpectralConfig
from optmerge.merging.methods import TensorKind, build_method
from optmerge.merging.methods.bands import Bands
from optmerge.merging.methods.matrices import dense, summed, task_matrices
from optmerge.merging.methods.spectrum import thin_svd
from optmerge.models.lora_factors import LoraFactors
from tests.merging.methods.toy import ToyModels, merged, random

NAMES = ("expert-0", "expert-1", "expert-2")
KINDS = {
    "wide": TensorKind("mlp", False, (18, 30)),
    "turned": TensorKind("mlp", True, (30, 18)),
    "single": TensorKind("mlp", False, (1, 20, 24)),
    "stack": TensorKind("mlp", False, (3, 20, 24)),
}
METHODS: dict[str, MethodSettings] = {
    "star": StarConfig(),
    "star-whole": StarConfig(share=1.0),
    "iso-c": IsoCConfig(),
    "iso-cts": IsoCtsConfig(),
    "iso-cts-own": IsoCtsConfig(common=0.5),
    "tsv-m": TsvMConfig(),
    "tsv-m-more": TsvMConfig(ranks=3.0),
    "drm": DrmConfig(),
    "drm-vertical": DrmConfig(direction="vertical"),
    "opcm": OpcmConfig(),
    "wudi-2": Wudi2Config(experts="adapters", steps=3),
}
every = pytest.mark.parametrize("config", METHODS.values(), ids=METHODS)


def adapters(dtype: torch.dtype, *, rank: int = 2, dense_expert: bool = False) -> tuple[ToyModels, ToyModels]:
    """A base with adapters as checkpoints have them, and the same with the exact products as experts."""
    generator = torch.Generator().manual_seed(1)
    factors: dict[tuple[str, str], LoraFactors] = {}
    base: dict[str, torch.Tensor] = {}
    stored: dict[str, dict[str, torch.Tensor]] = {name: {} for name in NAMES}
    exact: dict[str, dict[str, torch.Tensor]] = {name: {} for name in NAMES}
    for name, kind in KINDS.items():
        base[name] = random(generator, *kind.shape, dtype=dtype)
        for number, expert in enumerate(NAMES):
            b = 0.1 * random(generator, *kind.shape[:-1], rank, dtype=torch.float32)
            a = 0.1 * random(generator, *kind.shape[:-2], rank, kind.shape[-1], dtype=torch.float32)
            low = LoraFactors(b, a, 0.5 + number)
            if not (dense_expert and number == 1):
                factors[expert, name] = low
            stored[expert][name] = (base[name].float() + low.product(torch.float32)).to(dtype)
            exact[expert][name] = low.product(torch.float64)
            if dense_expert and number == 1:
                exact[expert][name] = (stored[expert][name].float() - base[name].float()).double()
    zero = {name: torch.zeros(kind.shape, dtype=torch.float64) for name, kind in KINDS.items()}
    return ToyModels(base, stored, kinds=KINDS, factors=factors), ToyModels(zero, exact, kinds=KINDS)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(found - expected) / torch.linalg.vector_norm(expected))


@every
@pytest.mark.parametrize(
    ("dtype", "dense_expert"), [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)]
)
def test_factors_give_what_their_exact_products_give(
    config: MethodSettings, dtype: torch.dtype, dense_expert: bool
) -> None:
    models, exact = adapters(dtype, dense_expert=dense_expert)
    for name, value in merged(config, exact).items():
        found = merged(config, models)[name]
        assert found.dtype == torch.float32
        assert found.shape == KINDS[name].shape
        assert found.is_contiguous()
        assert relative(found.double(), value) < 2e-4, name


@every
def test_nothing_is_made_up_outside_of_what_the_adapters_write(config: MethodSettings) -> None:
    models, _ = adapters(torch.bfloat16)
    for name, found in merged(config, models).items():
        stacks = found.double().reshape(-1, *found.shape[-2:])
        for index, matrix in enumerate(stacks):
            lefts = [models.factors(expert, name) for expert in NAMES]
            b = torch.cat([low.b.reshape(-1, *low.b.shape[-2:])[index] for low in lefts if low], dim=-1).double()
            a = torch.cat([low.a.reshape(-1, *low.a.shape[-2:])[index] for low in lefts if low], dim=-2).double()
            outputs, inputs = torch.linalg.qr(b).Q, torch.linalg.qr(a.mT).Q
            inside = outputs @ outputs.mT @ matrix
            if not isinstance(config, DrmConfig):  # it masks coordinates, and so keeps one of the two spaces
                inside = inside @ inputs @ inputs.mT
            elif config.direction == ("horizontal" if KINDS[name].input_first else "vertical"):
                inside = matrix @ inputs @ inputs.mT
            assert torch.isfinite(matrix).all()
            assert relative(inside, matrix) < 1e-5, name


@pytest.mark.parametrize("of", ["task_arithmetic", "tsv-m", "iso-c"])
@pytest.mark.parametrize("divide", ["energy", "count"])
def test_bands_of_adapters_add_up_and_are_those_of_their_products(of: Any, divide: Any) -> None:
    models, exact = adapters(torch.bfloat16, rank=4)
    config = SpectralConfig(of=of, bands=2, divide=divide)
    method, other = (build_method(config, each.experts) for each in (models, exact))
    assert isinstance(method, Bands)
    assert isinstance(other, Bands)
    for name in models.names:
        bands, expected = method.band_deltas(models, name), other.band_deltas(exact, name)
        assert len(bands) == (2 if of == "iso-c" else 6)
        wholes = [method.delta(models, name)] if of == "iso-c" else method.expert_deltas(models, name)
        for first, second, whole in zip(bands[::2], bands[1::2], wholes, strict=True):
            assert relative(first + second, whole) < 1e-6
        for found, value in zip(bands, expected, strict=True):
            assert relative(found.double(), value) < 2e-4, name


@pytest.mark.parametrize("rank", [1, 3, 40])
@pytest.mark.parametrize("shape", [(18, 30), (30, 18), (2, 18, 30)])
def test_the_svd_of_factors_is_that_of_their_product(rank: int, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(2)
    low = LoraFactors(random(generator, *shape[:-1], rank), random(generator, *shape[:-2], rank, shape[-1]), -2.0)
    whole = low.product(torch.float64)
    u, sigma, vh = thin_svd(low)
    count = min(rank, *shape[-2:])
    assert sigma.shape[-1] == count
    torch.testing.assert_close(sigma, torch.linalg.svdvals(whole)[..., :count])
    torch.testing.assert_close((u * sigma.unsqueeze(-2)) @ vh, whole)
    eye = torch.eye(count, dtype=torch.float64).expand(*shape[:-2], count, count)
    torch.testing.assert_close(u.mT @ u, eye)
    torch.testing.assert_close(vh @ vh.mT, eye)


def test_a_sum_of_factors_stays_factors_as_long_as_it_is_thin() -> None:
    generator = torch.Generator().manual_seed(3)
    lows = [LoraFactors(random(generator, 9, 2), random(generator, 2, 7), scale) for scale in (1.0, 0.5, 3.0, 2.0)]
    weights = (0.3, -1.0, 2.0, 1.0)
    expected = sum(weight * low.product(torch.float64) for weight, low in zip(weights, lows, strict=True))
    for count, thin in ((3, True), (4, False)):
        total = summed(lows[:count], weights[:count])
        assert isinstance(total, LoraFactors) == thin
    torch.testing.assert_close(dense(summed(lows, weights)), expected)
    torch.testing.assert_close(dense(summed([dense(lows[0]), *lows[1:]], weights)), expected)


def test_task_matrices_keep_factors_where_there_are_matrices() -> None:
    models, _ = adapters(torch.bfloat16, dense_expert=True)
    for name, shape in {"wide": (18, 30), "turned": (30, 18), "single": (20, 24), "stack": (3, 20, 24)}.items():
        found = task_matrices(models, name)
        assert [isinstance(matrix, LoraFactors) for matrix in found] == [True, False, True]
        assert {tuple(matrix.shape) for matrix in found} == {shape}
        assert {dense(matrix).dtype for matrix in found} == {torch.float32}
