"""FuseChat's select, calculate, erase against its description (Wan et al. 2024)."""

from __future__ import annotations

import pytest
import torch

from optmerge.config.methods import SceConfig
from optmerge.merging.methods import build_method, vectors
from tests.merging.methods.toy import ToyModels, every_kind, of_deltas, random


def sce(models: ToyModels, name: str = "w", **settings: object) -> torch.Tensor:
    return build_method(SceConfig.model_validate(settings), models.experts).delta(models, name)


def by_hand(taus: torch.Tensor, density: float, *, everywhere: bool) -> torch.Tensor:
    """[experts, ...] -> the merge."""
    selected = taus
    if density < 1:
        variance = taus.var(dim=0, correction=0).flatten()
        keep = int(density * variance.count_nonzero())
        mask = torch.zeros_like(variance)
        mask[variance.argsort(descending=True, stable=True)[:keep]] = 1.0
        selected = taus * mask.view(taus[0].shape)
    squares = selected.square().flatten(1).sum(1)
    shares = (squares / squares.sum()).view(-1, *[1] * (taus.ndim - 1))
    merged = selected if everywhere else taus
    agree = (merged.sign() == merged.sum(0).sign()) & (merged != 0)
    mass = (shares * agree).sum(0)
    return (shares * merged * agree).sum(0) / mass.masked_fill(mass == 0, 1.0)


@pytest.fixture
def models() -> ToyModels:
    generator = torch.Generator().manual_seed(3)
    return of_deltas([{"w": (1 + number) * random(generator, 12, 9)} for number in range(3)])


def taus(models: ToyModels, name: str = "w") -> torch.Tensor:
    return torch.stack([models.task_vector(expert, name) for expert in models.experts])


@pytest.mark.parametrize("selected", ["everywhere", "shares"])
@pytest.mark.parametrize("density", [0.0, 0.1, 0.4, 1.0])
@pytest.mark.parametrize("limit", [7, 1 << 15])
def test_by_hand(models: ToyModels, selected: str, density: float, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors.RawVectors.__init__, "__kwdefaults__", {"by_rows": False, "limit": limit})
    found = sce(models, density=density, selected=selected)
    if density == 0 and selected == "shares":  # nothing to calculate from: equal shares
        values = taus(models)
        agree = values.sign() == values.sum(0).sign()
        torch.testing.assert_close(found, (values * agree).sum(0) / agree.sum(0))
    elif density == 0:
        assert not found.any()
    else:
        torch.testing.assert_close(found, by_hand(taus(models), density, everywhere=selected == "everywhere"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "name", ["attention.weight", "norm.weight", "patch.weight", "embed.weight", "mlp.conv1d.weight"]
)
def test_kinds_of_tensors(name: str, dtype: torch.dtype) -> None:
    models = every_kind(3, dtype=dtype)
    for everywhere, selected in ((True, "everywhere"), (False, "shares")):
        expected = by_hand(taus(models, name), 0.3, everywhere=everywhere)
        torch.testing.assert_close(sce(models, name, density=0.3, selected=selected), expected)


def test_the_two_readings_differ_in_what_is_merged(models: ToyModels) -> None:
    assert sce(models, density=0.1).count_nonzero() == 10  # of 108
    assert sce(models, density=0.1, selected="shares").count_nonzero() == 108


def test_of_one_sign_it_is_the_mean_by_squares() -> None:
    positive = taus(models := of_deltas([{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 1.0])}]))
    shares = torch.tensor([5 / 15, 10 / 15])[:, None]
    torch.testing.assert_close(sce(models, density=1.0), (shares * positive).sum(0))


@pytest.mark.parametrize("density", [0.1, 1.0])
def test_copies_of_one_expert_are_the_expert(models: ToyModels, density: float) -> None:
    one = {"w": models.expert("expert-0", "w")}
    torch.testing.assert_close(sce(of_deltas([one] * 3), density=density), one["w"])
    torch.testing.assert_close(sce(of_deltas([one]), density=density), one["w"])
    # mergekit selects by variance, and there is none
    assert sce(of_deltas([one] * 3), density=density, compat="mergekit").any() == (density == 1.0)


def test_scale_equivariant_odd_and_order_invariant(models: ToyModels) -> None:
    expected = sce(models)
    for factor in (1e-6, -1.0, 1e3):
        changed = of_deltas([{"w": factor * models.expert(expert, "w")} for expert in models.experts])
        torch.testing.assert_close(sce(changed) / factor, expected)
    turned = of_deltas([{"w": models.expert(expert, "w")} for expert in reversed(models.experts)])
    torch.testing.assert_close(sce(turned), expected)


def test_small_task_vectors_have_equal_shares_with_mergekit_only() -> None:
    models = of_deltas([{"w": torch.tensor([1e-4, 2e-4])}, {"w": torch.tensor([5e-4, 1e-4])}])
    assert torch.allclose(sce(models, density=1.0, compat="mergekit"), torch.tensor([3e-4, 1.5e-4]))
    shares = torch.tensor([5 / 31, 26 / 31])[:, None]
    torch.testing.assert_close(sce(models, density=1.0), (shares * taus(models)).sum(0))


def test_a_tie_of_signs() -> None:
    models = of_deltas([{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([-1.0, 2.0])}])
    assert sce(models, density=1.0).tolist() == [0.0, 2.0]
    assert sce(models, density=1.0, compat="mergekit").tolist() == [1.0, 2.0]


def test_an_expert_that_is_the_base_has_no_share(models: ToyModels) -> None:
    still = {"w": torch.zeros(12, 9, dtype=torch.float64)}
    one = {"w": models.expert("expert-0", "w")}
    torch.testing.assert_close(sce(of_deltas([one, still]), density=1.0), one["w"])
