"""Model Stock against its closed form."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optmerge.config.methods import ModelStockConfig
from optmerge.errors import ConfigError
from optmerge.merging.methods import build_method
from optmerge.merging.methods.stock import stock
from tests.merging.methods.toy import KINDS, ToyModels, every_kind, of_deltas, random


def with_cosines(*cosines: float) -> torch.Tensor:
    """Inner products of unit vectors with these cosines, pair by pair."""
    count = round((1 + math.sqrt(1 + 8 * len(cosines))) / 2)
    products = torch.eye(count, dtype=torch.float64)
    first, second = torch.triu_indices(count, count, offset=1)
    products[first, second] = products[second, first] = torch.tensor(cosines, dtype=torch.float64)
    return products


def share(cosine: float, count: int, *, unclamped: bool = False) -> float:
    """t of equal cosines."""
    return count * stock(with_cosines(*[cosine] * (count * (count - 1) // 2)), unclamped=unclamped)[0].item()


@given(cosine=st.floats(0, 1), count=st.integers(2, 12))
def test_the_formula(cosine: float, count: int) -> None:
    t = share(cosine, count)
    assert t == pytest.approx(count * cosine / (1 + (count - 1) * cosine))
    assert 0 <= t <= 1
    assert share(cosine, count + 1) >= t - 1e-12  # more experts, nearer to their mean
    assert share(cosine, count, unclamped=True) == pytest.approx(t)


def test_limits() -> None:
    assert share(1.0, 3) == pytest.approx(1)
    assert share(0.0, 3) == 0
    assert share(0.3, 100) == pytest.approx(1, abs=0.03)
    assert share(-0.2, 4) == 0
    assert share(-0.2, 4, unclamped=True) == pytest.approx(-2)
    assert share(-1 / 3, 4, unclamped=True) == 0  # no finite point: the base


def test_what_is_averaged_over_three_pairs() -> None:
    products = with_cosines(0.1, 0.9, 0.5)
    t = {}
    for average, cosine in (
        ("cosine", 0.5),
        ("angle", math.cos((math.acos(0.1) + math.acos(0.9) + math.acos(0.5)) / 3)),
    ):
        t[average] = 3 * stock(products, average=average)[0].item()  # type: ignore[arg-type]
        assert t[average] == pytest.approx(3 * cosine / (1 + 2 * cosine))
    assert t["angle"] > t["cosine"] + 0.01


def deltas(models: ToyModels, **settings: object) -> dict[str, torch.Tensor]:
    method = build_method(ModelStockConfig.model_validate(settings), models.experts)
    return {name: method.delta(models, name) for name in models.names}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kind_of_tensor_has_an_angle_of_its_own(dtype: torch.dtype) -> None:
    models = every_kind(2, dtype=dtype)
    for name, delta in deltas(models).items():
        first, second = (models.task_vector(expert, name).double() for expert in models.experts)
        if not delta.numel():
            continue
        cosine = torch.cosine_similarity(first.flatten(), second.flatten(), dim=0).clamp_min(0)
        expected = 2 * cosine / (1 + cosine) * (first + second) / 2
        torch.testing.assert_close(delta.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["attention.weight", "embed.weight", "mlp.conv1d.weight", "patch.weight"])
def test_filters_have_angles_of_their_own(name: str) -> None:
    models = every_kind(3, dtype=torch.float64)
    rows = [models.task_vector(expert, name) for expert in models.experts]
    rows = [row.mT if KINDS[name].input_first else row.flatten(1) for row in rows]
    found = deltas(models, scope="row")[name]
    found = found.mT if KINDS[name].input_first else found.flatten(1)
    for number, line in enumerate(found):
        one = of_deltas([{"w": row[number]} for row in rows])
        torch.testing.assert_close(line, deltas(one)["w"])


def test_orthogonal_experts_leave_the_base_and_one_that_is_the_base_too() -> None:
    first, second = torch.eye(4).double()[:2]
    assert not deltas(of_deltas([{"w": first}, {"w": second}]))["w"].any()
    assert not deltas(of_deltas([{"w": first}, {"w": torch.zeros_like(first)}]))["w"].any()


def test_rotation_and_scale() -> None:
    generator = torch.Generator().manual_seed(1)
    vectors = [random(generator, 12) + 0.6 for _ in range(3)]
    rotation, _ = torch.linalg.qr(random(generator, 12, 12))
    plain = deltas(of_deltas([{"w": vector} for vector in vectors]))["w"]
    assert plain.norm() > 0.1
    turned = deltas(of_deltas([{"w": 1e-9 * (rotation @ vector)} for vector in vectors]))["w"]
    torch.testing.assert_close(turned, 1e-9 * (rotation @ plain), rtol=1e-9, atol=0)


def test_one_expert_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"there is one \(a\)\. Give it another one"):
        build_method(ModelStockConfig(), ["a"])
