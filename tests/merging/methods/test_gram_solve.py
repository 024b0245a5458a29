"""RegMean (Jin et al. 2023) against its closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from optmerge.config.methods import Need, RegMeanConfig
from optmerge.merging.methods import TensorKind, build_method
from optmerge.merging.methods.gram_solve import gram_mean
from tests.merging.methods.toy import ToyModels, random


def problem(
    count: int = 3, d_out: int = 5, d_in: int = 4, rows: int = 30
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    weights = [random(generator, d_out, d_in) for _ in range(count)]
    inputs = [random(generator, rows, d_in) for _ in range(count)]
    return weights, [x.mT @ x / rows for x in inputs]


def solve(
    weights: list[torch.Tensor], grams: list[torch.Tensor], shares: tuple[float, ...] | None = None, **settings: Any
) -> torch.Tensor:
    return gram_mean(weights, grams, shares or (1.0,) * len(weights), **{"shrink": 1.0, "ridge": 0.0} | settings)


def test_the_gradient_of_the_least_squares_problem_is_zero() -> None:
    weights, grams = problem()
    merged = solve(weights, grams)
    gradient = sum((merged - weight) @ gram for weight, gram in zip(weights, grams, strict=True))
    torch.testing.assert_close(gradient, torch.zeros_like(merged), atol=1e-12, rtol=0)


def test_the_formula_with_weights_and_shrinking() -> None:
    weights, grams = problem()
    shares = (0.5, 2.0, 1.0)
    shrunk = [s * (0.6 * g + 0.4 * torch.diag(g.diagonal())) for s, g in zip(shares, grams, strict=True)]
    expected = torch.linalg.solve(sum(shrunk), sum(g @ w.mT for g, w in zip(shrunk, weights, strict=True))).mT
    torch.testing.assert_close(solve(weights, grams, shares, shrink=0.6), expected)


def test_one_expert_equal_grams_equal_weights_and_a_common_scale() -> None:
    weights, grams = problem()
    torch.testing.assert_close(solve(weights[:1], grams[:1], ridge=1e-6), weights[0])
    torch.testing.assert_close(solve(weights, [grams[0]] * 3, ridge=1e-6), torch.stack(weights).mean(0))
    torch.testing.assert_close(solve([weights[0]] * 3, grams, ridge=1e-6), weights[0])
    torch.testing.assert_close(solve(weights, [7 * gram for gram in grams]), solve(weights, grams))


def test_without_off_diagonals_it_is_a_weighted_mean_per_input() -> None:
    weights, grams = problem()
    diagonals = torch.stack([gram.diagonal() for gram in grams])
    expected = (torch.stack(weights) * diagonals[:, None]).sum(0) / diagonals.sum(0)
    torch.testing.assert_close(solve(weights, grams, shrink=0.0), expected)


def test_permuting_inputs_permutes_the_merge_and_order_does_not_matter() -> None:
    weights, grams = problem()
    order = torch.tensor([2, 0, 3, 1])
    permuted = solve([weight[:, order] for weight in weights], [gram[order][:, order] for gram in grams])
    torch.testing.assert_close(permuted, solve(weights, grams)[:, order])
    torch.testing.assert_close(solve(weights[::-1], grams[::-1]), solve(weights, grams))


def test_a_fold_with_summed_grams_is_the_batch() -> None:
    weights, grams = problem()
    folded, total = weights[0], grams[0]
    for weight, gram in zip(weights[1:], grams[1:], strict=True):
        folded, total = solve([folded, weight], [total, gram]), total + gram
    torch.testing.assert_close(folded, solve(weights, grams))


@pytest.mark.parametrize("ridge", [0.0, 1e-6])
def test_inputs_that_never_occur_keep_the_mean(ridge: float) -> None:
    weights, grams = problem()
    for gram in grams:
        gram[1], gram[:, 1] = 0, 0
    merged = solve(weights, grams, ridge=ridge)
    torch.testing.assert_close(merged[:, 1], torch.stack(weights).mean(0)[:, 1])
    kept = [0, 2, 3]
    alone = solve([weight[:, kept] for weight in weights], [gram[kept][:, kept] for gram in grams], ridge=ridge)
    torch.testing.assert_close(merged[:, kept], alone)


def test_fewer_inputs_than_dimensions() -> None:
    weights, grams = problem(count=2, d_in=9, rows=3)  # six directions of nine are seen
    merged = solve(weights, grams)
    gradient = sum((merged - weight) @ gram for weight, gram in zip(weights, grams, strict=True))
    torch.testing.assert_close(gradient, torch.zeros_like(merged), atol=1e-9, rtol=0)
    # The smallest of the many solutions, in inputs of unit power: the one that a vanishing ridge leads to.
    torch.testing.assert_close(solve(weights, grams, ridge=1e-8), merged, atol=1e-4, rtol=0)


def models(*, input_first: bool = False, grams: bool = True) -> ToyModels:
    weights, matrices = problem()
    weights = [weight.mT.contiguous() if input_first else weight for weight in weights]
    base = torch.full_like(weights[0], 0.5)
    experts = {f"expert-{i}": {"w": weight} for i, weight in enumerate(weights)}
    known: dict[tuple[Need, str, str], torch.Tensor] = {}
    if grams:
        known = {("grams", f"expert-{i}", "w"): gram for i, gram in enumerate(matrices)}
    kinds = {"w": TensorKind("mlp", input_first, tuple(base.shape))}
    return ToyModels({"w": base}, experts, kinds=kinds, statistics=known)


@pytest.mark.parametrize("input_first", [False, True])
def test_layers_stored_either_way(input_first: bool) -> None:
    toy = models(input_first=input_first)
    delta = build_method(RegMeanConfig(shrink=1.0, ridge=0.0), toy.experts).delta(toy, "w")
    expected = solve(*problem()) - 0.5
    torch.testing.assert_close(delta, expected.mT if input_first else expected)
    assert delta.is_contiguous()


def test_what_has_no_gram_gets_the_weighted_mean_or_stays() -> None:
    toy = models(grams=False)
    weights = {"expert-0": 2.0, "expert-2": 0.0}
    delta = build_method(RegMeanConfig(weights=weights), toy.experts).delta(toy, "w")
    expected = (2 * toy.task_vector("expert-0", "w") + toy.task_vector("expert-1", "w")) / 3
    torch.testing.assert_close(delta, expected)
    assert not build_method(RegMeanConfig(others="base"), toy.experts).delta(toy, "w").any()
    assert build_method(RegMeanConfig(), toy.experts).needs == {"grams"}
