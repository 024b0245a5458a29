"""Facility location against brute force, and near-duplicates."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from optmerge.calibration import diverse
from optmerge.calibration.diverse import distinct, representatives


def some(count: int, width: int = 5, *, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def value(embeddings: Tensor, chosen: tuple[int, ...] | list[int]) -> float:
    """Of a set of positions, by definition."""
    unit = normalize(embeddings.double(), dim=1)
    return float((1 + unit @ unit[list(chosen)].mT).max(1).values.sum()) if chosen else 0.0


@pytest.mark.parametrize("seed", range(5))
def test_every_choice_has_the_greatest_gain(seed: int) -> None:
    embeddings = some(40, seed=seed)
    chosen = representatives(embeddings, 40)
    assert sorted(chosen) == list(range(40))
    for step in range(12):
        best = max(value(embeddings, [*chosen[:step], one]) for one in range(40))
        assert value(embeddings, chosen[: step + 1]) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_close_to_the_best_set(count: int, seed: int) -> None:
    embeddings = some(12, 3, seed=seed)
    best = max(value(embeddings, those) for those in itertools.combinations(range(12), count))
    assert value(embeddings, representatives(embeddings, count)) >= (1 - 1 / math.e) * best
    if count == 1:
        assert value(embeddings, representatives(embeddings, count)) == pytest.approx(best)


def test_one_for_each_cluster() -> None:
    centres = torch.eye(6) * 10
    embeddings = (centres.repeat_interleave(torch.tensor([30, 1, 9, 14, 2, 5]), 0) + 0.05 * some(61, 6)).float()
    clusters = embeddings.argmax(1)
    assert set(clusters[representatives(embeddings, 6)].tolist()) == set(range(6))
    assert int(clusters[representatives(embeddings, 1)]) == 0  # the largest comes first


def test_scale_and_ties_do_not_matter() -> None:
    embeddings = some(30)
    chosen = representatives(embeddings, 7)
    scales = torch.rand(30, 1, generator=torch.Generator().manual_seed(5)) + 0.5
    assert representatives(embeddings * scales, 7) == chosen
    assert representatives(torch.ones(4, 3), 2) == [0, 1]


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = torch.cat([some(30), some(30) + 1e-3 * some(30, seed=2), some(9, seed=3)])
    expected = representatives(embeddings, 9), distinct(embeddings, above=0.95)
    monkeypatch.setattr(diverse, "_ROWS", 7)
    assert (representatives(embeddings, 9), distinct(embeddings, above=0.95)) == expected


def test_near_duplicates() -> None:
    angles = torch.tensor([0.0, 0.1, 0.4, 0.5, 1.2, 1.25, -3.0])
    embeddings = torch.stack([angles.cos(), angles.sin()], 1) * torch.arange(1, 8)[:, None]
    assert distinct(embeddings, above=math.cos(0.3)) == [0, 2, 4, 6]
    assert distinct(embeddings, above=math.cos(0.05001)) == [0, 1, 2, 3, 4, 6]
    assert distinct(embeddings, above=1.0) == list(range(7))
    kept = distinct(some(200, 3), above=0.9)
    unit = normalize(some(200, 3), dim=1)
    among = (unit[kept] @ unit[kept].mT).fill_diagonal_(0)
    assert float(among.max()) <= 0.9
    assert float((unit @ unit[kept].mT).max(1).values.min()) > 0.9  # what was dropped resembles something kept


def test_more_than_there_are() -> None:
    with pytest.raises(ValueError, match="5 representatives of 4"):
        representatives(some(4), 5)
