"""Sign election and the disjoint mean (Yadav et al. 2023)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optmerge.config.methods import TiesConfig
from optmerge.merging.methods.reduce import DisjointMean, WeightedSum
from optmerge.merging.methods.signs import elect
from tests.merging.methods.toy import merged_vectors, random

ENTRIES = st.lists(st.lists(st.integers(-4, 4), min_size=3, max_size=3), min_size=1, max_size=12)


def reduced(reducer: DisjointMean | WeightedSum, values: torch.Tensor) -> torch.Tensor:
    out = torch.full_like(values[0], torch.nan)
    reducer([value.clone() for value in values], out)
    return out


def by_hand(entry: list[float], weights: list[float], *, mergekit: bool, normalize: bool) -> float:
    weighted = [w * value for w, value in zip(weights, entry, strict=True)]
    votes = sum(weighted if mergekit else entry)
    sign = 1 if votes > 0 or (votes == 0 and mergekit) else -1 if votes < 0 else 0
    agree = [index for index, value in enumerate(weighted) if value * sign > 0]
    mass = sum(weights[index] for index in agree)
    total = sum(weighted[index] for index in agree)
    return total / mass if normalize and mass else total


@given(ENTRIES, st.booleans(), st.booleans(), st.sampled_from([[1.0, 1.0, 1.0], [0.25, 2.0, 0.5], [0.0, 1.0, 3.0]]))
def test_disjoint_mean_by_hand(entries: list[list[int]], mergekit: bool, normalize: bool, weights: list[float]) -> None:
    values = torch.tensor(entries, dtype=torch.float64).mT.contiguous()
    result = reduced(DisjointMean(tuple(weights), normalize=normalize, weighted_votes=mergekit), values)
    expected = [
        by_hand([float(value) for value in entry], weights, mergekit=mergekit, normalize=normalize) for entry in entries
    ]
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64))


def test_an_exact_tie() -> None:
    values = [torch.tensor([1.0, 0.0, -2.0]), torch.tensor([-1.0, 0.0, 1.0])]
    assert elect(values, torch.empty(3)).tolist() == [0.0, 0.0, -1.0]
    assert elect(values, torch.empty(3), zero_is_positive=True).tolist() == [1.0, 1.0, -1.0]
    tied = torch.tensor([[1.0], [-1.0]])
    assert reduced(DisjointMean((1.0, 1.0)), tied).tolist() == [0.0]
    assert reduced(DisjointMean((1.0, 1.0), weighted_votes=True), tied).tolist() == [1.0]


def test_the_weighted_sum_rounds_each_product_in_expert_order() -> None:
    generator = torch.Generator().manual_seed(0)
    values = random(generator, 3, 1000, dtype=torch.float32)
    expected = values[0] * 0.3
    expected = expected + values[1] * 0.7
    expected = expected + values[2] * -1.1
    assert torch.equal(reduced(WeightedSum((0.3, 0.7, -1.1)), values), expected)


# TIES as a whole: the properties that its description promises.


def ties(deltas: list[torch.Tensor], **settings: object) -> torch.Tensor:
    return merged_vectors(TiesConfig.model_validate(settings), deltas)


@pytest.fixture
def deltas() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [random(generator, 15, 9) for _ in range(3)]


@pytest.mark.parametrize("compat", ["paper", "mergekit"])
def test_one_expert_untrimmed_is_the_expert(deltas: list[torch.Tensor], compat: str) -> None:
    assert torch.equal(ties(deltas[:1], density=1.0, compat=compat), deltas[0])


@pytest.mark.parametrize("compat", ["paper", "mergekit"])
def test_untrimmed_of_one_sign_is_the_mean(deltas: list[torch.Tensor], compat: str) -> None:
    positive = [delta.abs() for delta in deltas]
    torch.testing.assert_close(ties(positive, density=1.0, compat=compat), torch.stack(positive).mean(0))


@pytest.mark.parametrize("count", [2, 5])
def test_copies_of_one_expert_are_its_trimmed_self(deltas: list[torch.Tensor], count: int) -> None:
    torch.testing.assert_close(ties(deltas[:1] * count), ties(deltas[:1]))
    assert ties(deltas[:1]).count_nonzero() == 27  # 20 % of 135


def test_scale_equivariant_odd_and_order_invariant(deltas: list[torch.Tensor]) -> None:
    merged = ties(deltas)
    torch.testing.assert_close(ties([2.5 * delta for delta in deltas]), 2.5 * merged)
    torch.testing.assert_close(ties([-delta for delta in deltas]), -merged)
    torch.testing.assert_close(ties(deltas[::-1]), merged)


def test_negation_with_ties_of_sign() -> None:
    deltas = [torch.tensor([1.0, -1.0, 2.0, 3.0]), torch.tensor([-1.0, 1.0, 2.0, -1.0])]
    assert torch.equal(ties([-delta for delta in deltas], density=1.0), -ties(deltas, density=1.0))


@pytest.mark.parametrize("density", [0.2, 0.6, 1.0])
def test_bounded_by_the_largest_with_the_elected_sign(deltas: list[torch.Tensor], density: float) -> None:
    merged = ties(deltas, density=density, scope="tensor")
    trimmed = torch.stack([ties([delta], density=density, scope="tensor") for delta in deltas])
    assert (merged.abs() <= trimmed.abs().amax(0) + 1e-12).all()
    assert torch.equal(merged.sign(), trimmed.sum(0).sign())


def test_density_zero_is_the_base_and_weights_of_zero_are_left_out(deltas: list[torch.Tensor]) -> None:
    assert not ties(deltas, density=0.0).any()
    weights = {"expert-0": 0.0, "expert-1": 0.0}
    alone = ties([delta * keep for delta, keep in zip(deltas, (0, 0, 1), strict=True)], density=1.0)
    weighted = ties(deltas, density=1.0, weights=weights, compat="mergekit")
    torch.testing.assert_close(weighted, alone)


def test_weights_vote_for_mergekit_only() -> None:
    deltas = [torch.tensor([3.0]), torch.tensor([-2.0])]
    weights = {"expert-0": 0.5, "expert-1": 1.0}
    assert ties(deltas, density=1.0, weights=weights).tolist() == [3.0]
    assert ties(deltas, density=1.0, weights=weights, compat="mergekit").tolist() == [-2.0]
