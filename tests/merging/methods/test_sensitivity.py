"""Sens-Merging as a softmax of sensitivities: its factors, limits and signs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from optmerge.config.methods import SensConfig
from optmerge.merging.methods.sensitivity import distance_shares, sensitivities, softmax_factors
from tests.merging.methods.toy import KINDS, ToyModels, every_kind, merged, prepared

LAYERS = {"attention.weight": 0, "attention.bias": 0, "norm.weight": 0, "mlp.up.weight": 1, "mlp.experts": 1}


def layered(count: int = 3, dtype: torch.dtype = torch.float32) -> ToyModels:
    models = every_kind(count, dtype=dtype)
    models._kinds = {name: replace(kind, layer=LAYERS.get(name)) for name, kind in KINDS.items()}
    return models


def deltas(models: ToyModels, **settings: Any) -> dict[str, torch.Tensor]:
    return merged(SensConfig(**settings), models)


def factors(models: ToyModels, **settings: Any) -> dict[str, list[float]]:
    """Parameter -> what each expert's task vector is multiplied by."""
    method = prepared(SensConfig(**settings), models)
    found = {}
    for name in models.names:
        if KINDS[name].shape and 0 not in KINDS[name].shape:
            pairs = zip(models.experts, method.expert_deltas(models, name), strict=True)
            # by norms, for in bf16 an entry may not have moved
            found[name] = [float(part.norm() / models.task_vector(expert, name).norm()) for expert, part in pairs]
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_factors_add_up_to_the_number_of_experts_and_are_one_per_layer(dtype: torch.dtype) -> None:
    found = factors(layered(dtype=dtype), temperature=0.1)
    for values in found.values():
        assert sum(values) == pytest.approx(3.0, rel=1e-5)
    assert found["attention.weight"] == pytest.approx(found["norm.weight"], rel=1e-5)
    assert found["mlp.up.weight"] == pytest.approx(found["mlp.experts"], rel=1e-5)
    assert found["attention.weight"] != pytest.approx(found["mlp.up.weight"], rel=1e-3)
    assert found["embed.weight"] == pytest.approx(found["patch.weight"], rel=1e-5)  # both embeddings, in no layer


def test_the_formula_by_hand() -> None:
    models = layered(2)
    names = [name for name in models.names if LAYERS.get(name) == 1]
    alphas, distances = [], []
    for expert in models.experts:
        per_layer: dict[object, float] = {}
        for name in models.names:
            layer = LAYERS.get(name, KINDS[name].role)
            per_layer[layer] = per_layer.get(layer, 0.0) + float(models.statistics["saliency", expert, name].sum())
        alphas.append(per_layer[1] / math.sqrt(sum(value**2 for value in per_layer.values())))
        other = next(name for name in models.experts if name != expert)
        distances.append(float(models.statistics["logit-distance", other, expert]))
    scores = [alpha * distance / sum(distances) / 0.5 for alpha, distance in zip(alphas, distances, strict=True)]
    expected = [2 * math.exp(score) / sum(map(math.exp, scores)) for score in scores]
    assert factors(models, temperature=0.5)[names[0]] == pytest.approx(expected, rel=1e-5)


def test_a_high_temperature_is_task_arithmetic() -> None:
    models = layered()
    for name, delta in deltas(models, temperature=1e9).items():
        total = sum(models.task_vector(expert, name) for expert in models.experts)
        torch.testing.assert_close(delta, total, rtol=1e-5, atol=1e-6)


def test_a_low_temperature_is_the_most_sensitive_expert() -> None:
    models = layered()
    found = factors(models, temperature=1e-6)
    for values in found.values():
        assert sorted(values) == pytest.approx([0.0, 0.0, 3.0], abs=1e-5)


def test_the_sign_turns_the_order() -> None:
    models = layered()
    far, near = (factors(models, favour=favour, temperature=0.2)["mlp.up.weight"] for favour in ("far", "near"))
    assert sorted(range(3), key=far.__getitem__) == sorted(range(3), key=near.__getitem__, reverse=True)
    products = [ours * theirs for ours, theirs in zip(far, near, strict=True)]
    assert products == pytest.approx([products[0]] * 3, rel=1e-4)  # exp(s) exp(-s), up to the sums


def test_without_any_sensitivity_or_distance_all_count_alike() -> None:
    models = layered()
    models.statistics = {}
    assert all(values == pytest.approx([1.0] * 3) for values in factors(models, temperature=0.1).values())
    assert distance_shares(models) == dict.fromkeys(models.experts, 0.0)
    assert set(sensitivities(models)["expert-0"].values()) == {0.0}
    one = layered(1)
    assert factors(one, temperature=0.1)["mlp.up.weight"] == pytest.approx([1.0])


def test_sensitivities_have_norm_one_over_layers() -> None:
    for values in sensitivities(layered()).values():
        assert math.sqrt(sum(value**2 for value in values.values())) == pytest.approx(1.0)


def test_a_common_scale_of_saliency_or_distance_cancels() -> None:
    plain, scaled = layered(), layered()
    scale = {"saliency": 1e3, "logit-distance": 1e-2}
    scaled.statistics = {key: value * scale.get(key[0], 1.0) for key, value in plain.statistics.items()}
    expected = factors(plain, temperature=0.3)
    for name, values in factors(scaled, temperature=0.3).items():
        assert values == pytest.approx(expected[name], rel=1e-4)


def test_large_scores_do_not_overflow() -> None:
    found = softmax_factors({"a": {0: 1.0}, "b": {0: 0.5}}, {"a": 1.0, "b": 1.0}, 1e-300)
    assert found == {0: {"a": 2.0, "b": 0.0}}
