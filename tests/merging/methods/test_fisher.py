"""Fisher merging (Matena and Raffel 2022) against its closed form and in its limits."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optmerge.config.methods import FisherConfig, Need
from optmerge.errors import ConfigError
from optmerge.merging.methods import build_method
from tests.merging.methods.toy import KINDS, ToyModels, every_kind, prepared, random

Statistics = Mapping[tuple[Need, str, str], torch.Tensor]


def merged(models: ToyModels, **settings: object) -> dict[str, torch.Tensor]:
    method = prepared(FisherConfig.model_validate(settings), models)
    return {name: method.delta(models, name) for name in models.names}


def with_fisher(models: ToyModels, fisher: Mapping[tuple[str, str], torch.Tensor]) -> ToyModels:
    models.statistics = {("fisher", expert, name): value for (expert, name), value in fisher.items()}
    return models


def constant(models: ToyModels, values: Mapping[str, float]) -> dict[tuple[str, str], torch.Tensor]:
    return {
        (expert, name): torch.full(KINDS[name].shape, value)
        for expert, value in values.items()
        for name in models.names
    }


def test_the_closed_form_in_weights() -> None:
    """Norm over the whole model, floor by the larger of the two, and weights themselves rather than differences."""
    models = every_kind(3, dtype=torch.float64)
    weights = {"expert-0": 1.0, "expert-1": 0.5, "expert-2": 2.0}
    found = merged(models, weights=weights, floor=0.05)
    norms = {}
    for expert in models.experts:
        entries = torch.cat([models.statistics["fisher", expert, name].double().flatten() for name in models.names])
        norms[expert] = entries.norm()
    for name in models.names:
        top, mass = torch.zeros(KINDS[name].shape).double(), torch.zeros(KINDS[name].shape).double()
        for expert in models.experts:
            share = weights[expert] * (models.statistics["fisher", expert, name] / norms[expert]).clamp(min=0.05)
            top += share * models.expert(expert, name)
            mass += share
        torch.testing.assert_close(models.base(name) + found[name], top / mass)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_information_is_the_mean(dtype: torch.dtype) -> None:
    models = every_kind(3, dtype=dtype)
    same = constant(models, dict.fromkeys(models.experts, 0.3))
    for name, delta in merged(with_fisher(models, same)).items():
        mean = torch.stack([models.task_vector(expert, name) for expert in models.experts]).mean(0)
        torch.testing.assert_close(delta, mean, rtol=1e-5, atol=1e-6)


def test_much_more_information_is_that_expert() -> None:
    models = every_kind(3)
    much = constant(models, {"expert-0": 1e-9, "expert-1": 1.0, "expert-2": 1e-9})
    for name, delta in merged(with_fisher(models, much), normalize=False, floor=1e-9).items():
        torch.testing.assert_close(delta, models.task_vector("expert-1", name), rtol=1e-5, atol=1e-5)


def test_what_no_gradient_reaches_is_the_weighted_mean() -> None:
    models = every_kind(2)
    models.statistics = {}
    for name, delta in merged(models, weights={"expert-0": 3.0}).items():
        mean = (3 * models.task_vector("expert-0", name) + models.task_vector("expert-1", name)) / 4
        torch.testing.assert_close(delta, mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
def test_scales_of_the_information_cancel(normalize: bool) -> None:
    """Each expert's own where it is normalised, and a common one, floor included, where it is not."""
    plain, scaled = every_kind(3), every_kind(3)
    factors = {"expert-0": 7.0, "expert-1": 1e-3 if normalize else 7.0, "expert-2": 2.0 if normalize else 7.0}
    scaled.statistics = {
        (need, expert, name): value * factors[expert] for (need, expert, name), value in plain.statistics.items()
    }
    expected = merged(plain, normalize=normalize, floor=0.1)
    for name, delta in merged(scaled, normalize=normalize, floor=0.1 if normalize else 0.7).items():
        torch.testing.assert_close(delta, expected[name], rtol=1e-4, atol=1e-5)


@given(seed=st.integers(0, 2**16), count=st.integers(1, 4))
def test_every_entry_lies_between_the_experts(seed: int, count: int) -> None:
    models = every_kind(count, seed=seed)
    for name, delta in merged(models).items():
        deltas = torch.stack([models.task_vector(expert, name) for expert in models.experts])
        assert (delta >= deltas.amin(0) - 1e-5).all()
        assert (delta <= deltas.amax(0) + 1e-5).all()


def test_only_ratios_of_weights_matter_and_one_at_least_is_above_zero() -> None:
    models = every_kind(2)
    once, twice = (merged(models, weights={"expert-0": factor, "expert-1": 3 * factor}) for factor in (1.0, 2.0))
    for name in models.names:
        torch.testing.assert_close(once[name], twice[name], rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match=r"fisher\.weights add up to 0"):
        build_method(FisherConfig(weights={"expert-0": 0, "expert-1": 0}), models.experts)


def test_without_normalisation_a_large_scale_outvotes() -> None:
    models = every_kind(2)
    generator = torch.Generator().manual_seed(3)
    information = {
        (expert, name): random(generator, *KINDS[name].shape).square().float() * (1e4 if expert == "expert-1" else 1)
        for expert in models.experts
        for name in models.names
    }
    name = "mlp.up.weight"
    tau = models.task_vector("expert-1", name)
    distances = [
        float((merged(with_fisher(models, information), normalize=normalize)[name] - tau).norm())
        for normalize in (False, True)
    ]
    assert distances[0] < 0.1 * distances[1]
