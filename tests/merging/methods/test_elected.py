"""LED-Merging (Ma et al. 2025): locate, elect, disjoin."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optmerge.config.methods import LedConfig, Need
from optmerge.errors import ConfigError
from optmerge.merging.methods import build_method
from optmerge.merging.methods.elected import most_important
from tests.merging.methods.toy import ToyModels, every_kind


def parts(models: ToyModels, name: str, **settings: Any) -> list[torch.Tensor]:
    return build_method(LedConfig(**settings), models.experts).expert_deltas(models, name)


def by_hand(models: ToyModels, name: str, density: float) -> list[torch.Tensor]:
    """The steps of the paper with one sort each."""
    elected = []
    for expert in models.experts:
        mask = torch.ones(models.base(name).numel(), dtype=torch.bool)
        for need in ("saliency", "base-saliency"):
            scores = models.statistics[need, expert, name].flatten()
            order = scores.argsort(descending=True, stable=True)
            top = torch.zeros_like(mask)
            top[order[: int(density * len(scores) + 0.5)]] = True
            mask &= top
        elected.append(mask)
    votes = torch.stack(elected).sum(0)
    shape = models.base(name).shape
    return [
        models.task_vector(expert, name) * (mask & (votes == 1)).view(shape)
        for expert, mask in zip(models.experts, elected, strict=True)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("density", [0.1, 0.4, 0.8])
def test_the_steps_of_the_paper(dtype: torch.dtype, density: float) -> None:
    models = every_kind(3, dtype=dtype)
    kept = 0
    for name in models.names:
        found = parts(models, name, density=density)
        for ours, expected in zip(found, by_hand(models, name, density), strict=True):
            assert torch.equal(ours, expected)
            kept += int(ours.count_nonzero())
    assert kept > 0


@given(seed=st.integers(0, 2**16), density=st.floats(0, 1))
def test_every_entry_is_the_bases_or_one_experts(seed: int, density: float) -> None:
    models = every_kind(3, seed=seed)
    weights = {"expert-0": 0.5, "expert-1": 2.0}
    for name in ("attention.weight", "mlp.experts", "mix.weight", "norm.weight", "scale"):
        found = parts(models, name, density=density)
        assert bool((torch.stack([part != 0 for part in found]).sum(0) <= 1).all())
        delta = build_method(LedConfig(density=density, weights=weights), models.experts).delta(models, name)
        choices = [0.5 * found[0], 2.0 * found[1], found[2], torch.zeros_like(delta)]
        assert bool(torch.stack([delta == choice for choice in choices]).any(0).all())
        for part in found:
            assert int(part.count_nonzero()) <= int(density * part.numel() + 0.5)


def test_identical_experts_with_identical_scores_are_the_base() -> None:
    models = every_kind(1)
    experts = {name: {n: models.expert("expert-0", n) for n in models.names} for name in ("x", "y")}
    statistics: dict[tuple[Need, str, str], torch.Tensor] = {
        (need, expert, name): value
        for expert in experts
        for (need, _, name), value in models.statistics.items()
        if need in ("saliency", "base-saliency")
    }
    same = ToyModels({n: models.base(n) for n in models.names}, experts, statistics=statistics)
    for name in models.names:
        assert not any(part.any() for part in parts(same, name, density=1.0))


def test_a_density_of_its_own_and_conflicts_only_of_what_is_elected() -> None:
    models = every_kind(2)
    name = "mlp.up.weight"
    alone = parts(models, name, density=1.0, densities={"expert-1": 0.0})
    assert torch.equal(alone[0], models.task_vector("expert-0", name))
    assert not alone[1].any()
    with pytest.raises(
        ConfigError, match=r"led\.densities\.expert-7: there is no such expert; expected one of expert-0"
    ):
        build_method(LedConfig(densities={"expert-7": 0.5}), models.experts)


def test_what_no_example_reaches_is_not_elected() -> None:
    scores = torch.tensor([[0.0, 3.0], [0.0, 2.0]])
    assert most_important(scores, 1.0).tolist() == [[False, True], [False, True]]
    assert most_important(scores, 0.75).tolist() == [[False, True], [False, True]]
    assert most_important(scores, 0.25).tolist() == [[False, True], [False, False]]
    models = every_kind(1)
    models.statistics = {key: value for key, value in models.statistics.items() if key[2] != "norm.weight"}
    assert not parts(models, "norm.weight", density=1.0)[0].any()


def test_of_equal_scores_the_first_are_taken() -> None:
    assert most_important(torch.ones(2, 4), 0.5).tolist() == [[True] * 4, [False] * 4]
    assert most_important(torch.tensor([1.0, 2.0, 1.0, 1.0]), 0.5).tolist() == [True, True, False, False]
    assert most_important(torch.empty(0, 3), 0.5).shape == (0, 3)


def test_many_entries_are_as_few() -> None:
    """More than a chunk, and more than the selection looks at as a whole."""
    scores = torch.rand(70_000, generator=torch.Generator().manual_seed(1)).mul_(8).round_()
    found = most_important(scores, 0.3)
    order = scores.argsort(descending=True, stable=True)[:21_000]
    assert int(found.sum()) == 21_000
    assert bool(found[order].all())
