"""PCB-Merging against its definition on whole task vectors, and the properties that follow (Du et al. 2024)."""

from __future__ import annotations

import pytest
import torch

from optmerge.config.methods import PcbConfig
from optmerge.merging.methods import build_method, vectors
from tests.merging.methods.toy import ToyModels, every_kind, of_deltas, prepared, random


def parts(models: ToyModels, **settings: object) -> torch.Tensor:
    """[experts, entries of all parameters]: what each expert contributes."""
    method = prepared(PcbConfig.model_validate(settings), models)
    columns = [torch.stack(method.expert_deltas(models, name)).flatten(1) for name in models.names]
    return torch.cat(columns, dim=1)


def merged(models: ToyModels, **settings: object) -> torch.Tensor:
    method = prepared(PcbConfig.model_validate(settings), models)
    return torch.cat([method.delta(models, name).flatten() for name in models.names])


def whole(models: ToyModels) -> torch.Tensor:
    """[experts, entries of all parameters] fp64."""
    taus = [[models.task_vector(expert, name).flatten() for name in models.names] for expert in models.experts]
    return torch.stack([torch.cat(tau) for tau in taus]).double()


def by_definition(taus: torch.Tensor, density: float, clip: float, *, raw: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(a, c) of the description, with quantiles by sorting."""
    experts, size = taus.shape
    ordered = taus.abs().sort(dim=1).values
    ends = round(clip * size)
    low, high = ordered[:, ends, None], ordered[:, size - 1 - ends, None]
    magnitude = taus.abs().clamp(low, high)
    share = (magnitude - low) / (high - low)
    signed = taus.sign() * share
    if raw:
        agreement = torch.tanh(taus * taus.sum(0))
    else:
        agreement = torch.stack([torch.tanh(one * signed).sum(0) for one in signed])
    score = torch.exp(experts * share**2) * agreement
    descending = score.sort(dim=1, descending=True).values
    cut = descending[:, min(round(density * size), size - 1), None]
    return (score - cut).relu() / (descending[:, :1] - cut), taus.sign() * magnitude


@pytest.fixture
def models() -> ToyModels:
    generator = torch.Generator().manual_seed(3)
    return of_deltas([{"small": 0.1 * random(generator, 9, 7), "large": random(generator, 40, 23)} for _ in range(4)])


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize(("density", "clip"), [(0.05, 0.01), (0.3, 0.1), (1.0, 0.0)])
def test_by_definition(
    models: ToyModels, density: float, clip: float, raw: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors.RawVectors.__init__, "__kwdefaults__", {"by_rows": False, "limit": 64})
    settings: dict[str, object] = {"density": density, "clip": clip, "balance": "raw" if raw else "normalized"}
    weights, values = by_definition(whole(models), density, clip, raw=raw)
    expected = weights * values / weights.sum(0).masked_fill(weights.sum(0) == 0, 1.0)
    torch.testing.assert_close(parts(models, **settings), expected)
    torch.testing.assert_close(merged(models, **settings), expected.sum(0))
    scaled = merged(models, weights={"expert-0": 0.8, "expert-2": -1.3}, **settings)
    scales = torch.tensor([0.8, 1.0, -1.3, 1.0], dtype=torch.float64)
    torch.testing.assert_close(scaled, (scales[:, None] * expected).sum(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_kind_of_tensor_by_definition(dtype: torch.dtype) -> None:
    models = every_kind(3, dtype=dtype, seed=5)
    weights, values = by_definition(whole(models), 0.2, 0.05, raw=False)
    expected = (weights * values).sum(0) / weights.sum(0).masked_fill(weights.sum(0) == 0, 1.0)
    found = merged(models, density=0.2, clip=0.05).double()
    # An entry next to the quantile has a weight that is a difference of two nearly equal numbers.
    sure = ((weights == 0) | (weights > 1e-3)).all(0)
    assert sure.double().mean() > 0.95
    torch.testing.assert_close(found[sure], expected[sure], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("density", [0.05, 0.1, 0.5])
def test_so_many_entries_of_each_expert_count(models: ToyModels, density: float) -> None:
    taken = parts(models, density=density).count_nonzero(dim=1)
    assert taken.tolist() == [round(density * 983)] * 4


def test_one_expert_is_its_clipped_task_vector_where_it_counts(models: ToyModels) -> None:
    one = of_deltas([{name: models.expert("expert-0", name) for name in models.names}])
    tau, found = whole(one)[0], merged(one, density=0.3, clip=0.1)
    bound = tau.abs().sort(descending=True).values[98]
    support = tau.abs() >= tau.abs().sort(descending=True).values[294]
    torch.testing.assert_close(found, tau.clamp(-bound, bound) * support)


@pytest.mark.parametrize("count", [2, 5])
def test_copies_of_one_expert_count_as_one(models: ToyModels, count: int) -> None:
    one = {name: models.expert("expert-0", name) for name in models.names}
    torch.testing.assert_close(merged(of_deltas([one] * count)), merged(of_deltas([one])))


def changed(models: ToyModels, factor: float, order: slice) -> ToyModels:
    deltas = [{name: factor * models.expert(expert, name) for name in models.names} for expert in models.experts]
    return of_deltas(deltas[order])


def test_odd_scale_equivariant_and_order_invariant(models: ToyModels) -> None:
    expected = merged(models)
    torch.testing.assert_close(merged(changed(models, -1.0, slice(None))), -expected)
    torch.testing.assert_close(merged(changed(models, 1e-4, slice(None))), 1e-4 * expected)
    torch.testing.assert_close(merged(changed(models, 1.0, slice(None, None, -1))), expected)


def test_raw_agreement_depends_on_the_scale_of_task_vectors(models: ToyModels) -> None:
    expected = merged(models, balance="raw")
    torch.testing.assert_close(merged(changed(models, -1.0, slice(None)), balance="raw"), -expected)
    assert not torch.allclose(merged(changed(models, 10.0, slice(None)), balance="raw"), 10 * expected)


def test_a_merge_lies_between_the_experts_entries_and_zero(models: ToyModels) -> None:
    bound = whole(models).abs().sort(dim=1).values[:, -11, None]
    clipped = whole(models).clamp(-bound, bound)
    found = merged(models, density=0.4)
    assert (found <= clipped.amax(0).clamp_min(0) + 1e-12).all()
    assert (found >= clipped.amin(0).clamp_max(0) - 1e-12).all()


def test_magnitudes_that_are_all_the_same() -> None:
    signs = random(torch.Generator().manual_seed(0), 50).sign()
    assert torch.equal(merged(of_deltas([{"w": 0.5 * signs}] * 2), density=1.0), 0.5 * signs)
    assert torch.equal(merged(of_deltas([{"w": 0.5 * signs}, {"w": torch.zeros(50)}])), 0.5 * signs)


def test_many_experts_do_not_overflow() -> None:
    generator = torch.Generator().manual_seed(0)
    models = of_deltas([{"w": random(generator, 100, dtype=torch.float32)} for _ in range(120)])
    assert torch.isfinite(merged(models, density=0.2)).all()


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int | None]] = []
    models = every_kind(2)
    method = build_method(PcbConfig(), models.experts)
    method.prepare(models, lambda what, done, total: told.append((what, done, total)))
    assert told == [("quantiles", 1, 2), ("quantiles", 2, 2)]
