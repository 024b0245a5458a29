"""Random drops: the law, and that nothing but seed, expert, name and index matters."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from optmerge.merging.methods.drop import Dropped, Rescale
from optmerge.merging.methods.thinning import Words
from optmerge.merging.methods.vectors import RawVectors
from tests.merging.methods.toy import ToyModels, of_deltas, random


def dropped(
    models: ToyModels, name: str, *, drop: float, rescale: Rescale = "inverse", seed: int = 0, limit: int = 1 << 15
) -> torch.Tensor:
    vectors = Dropped(RawVectors(models, limit=limit), drop=drop, rescale=rescale, seed=seed)
    result = torch.full(models.base(name).shape, torch.nan, dtype=models.base(name).dtype)
    for chunk in vectors.chunks(models.experts[0], name):
        result[chunk.box] = chunk.values
    return result


def ones(size: int, name: str = "w") -> ToyModels:
    return of_deltas([{name: torch.ones(size)}])


def test_words_are_pinned() -> None:
    assert Words(0, "law", "w").slice(0, 4).tolist() == [3117117615, 928208510, 1490054087, 3487720105]


def test_any_slice_of_the_words_is_the_same() -> None:
    whole = Words(3, "law", "w").slice(0, 100)
    for start in range(20):
        for count in (0, 1, 2, 7, 8, 9, 80):
            assert np.array_equal(Words(3, "law", "w").slice(start, count), whole[start : start + count])


def test_masks_do_not_depend_on_chunks_or_shape() -> None:
    generator = torch.Generator().manual_seed(0)
    delta = random(generator, 30, 11)
    expected = dropped(of_deltas([{"w": delta}]), "w", drop=0.4)
    for limit in (1, 5, 11, 64, 330):
        assert torch.equal(dropped(of_deltas([{"w": delta}]), "w", drop=0.4, limit=limit), expected)
    turned = delta.mT.contiguous().mT
    assert torch.equal(dropped(of_deltas([{"w": turned}]), "w", drop=0.4), expected)
    assert torch.equal(dropped(of_deltas([{"w": delta.reshape(330)}]), "w", drop=0.4), expected.reshape(330))


def test_masks_depend_on_seed_expert_and_name() -> None:
    masks = [
        dropped(ones(64), "w", drop=0.5),
        dropped(ones(64), "w", drop=0.5, seed=1),
        dropped(ones(64, "v"), "v", drop=0.5),
        dropped(ToyModels({"w": torch.zeros(64)}, {"other": {"w": torch.ones(64)}}), "w", drop=0.5),
    ]
    assert len({tuple(mask.tolist()) for mask in masks}) == 4


def test_global_generators_are_neither_read_nor_moved() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = dropped(ones(64), "w", drop=0.5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(dropped(ones(64), "w", drop=0.5), first)


def test_what_is_dropped_stays_dropped_at_a_higher_share() -> None:
    kept = [dropped(ones(2000), "w", drop=drop) != 0 for drop in (0.1, 0.3, 0.6, 0.95)]
    for more, fewer in itertools.pairwise(kept):
        assert not (fewer & ~more).any()


@pytest.mark.parametrize("drop", [0.1, 0.5, 0.9])
def test_the_share_that_is_kept_and_its_scale(drop: float) -> None:
    result = dropped(ones(100_000), "w", drop=drop)
    assert result.unique().tolist() == pytest.approx([0, 1 / (1 - drop)])
    kept = result.count_nonzero().item() / 100_000
    assert kept == pytest.approx(1 - drop, abs=5 * (drop * (1 - drop) / 100_000) ** 0.5)


def test_the_expectation_over_seeds_is_the_task_vector() -> None:
    generator = torch.Generator().manual_seed(0)
    delta = random(generator, 50)
    models = of_deltas([{"w": delta}])
    mean = sum(dropped(models, "w", drop=0.5, seed=seed) for seed in range(800)) / 800
    error = (mean - delta).abs() / (delta.abs() / 800**0.5)  # in standard errors, which are |delta| at .5
    assert error.max() < 4.5


@pytest.mark.parametrize("drop", [0.3, 0.8])
def test_l1_rescaling_keeps_the_norm(drop: float) -> None:
    generator = torch.Generator().manual_seed(0)
    delta = random(generator, 500)
    models = of_deltas([{"w": delta}])
    result = dropped(models, "w", drop=drop, rescale="l1")
    torch.testing.assert_close(result.abs().sum(), delta.abs().sum())
    mask = result != 0
    torch.testing.assert_close(result, delta * mask * (delta.abs().sum() / (delta * mask).abs().sum()))


def test_no_rescaling_no_drop_and_nothing_left() -> None:
    assert set(dropped(ones(100), "w", drop=0.5, rescale="none").tolist()) == {0.0, 1.0}
    assert torch.equal(dropped(ones(100), "w", drop=0.0), torch.ones(100))
    lost = [seed for seed in range(50) if not dropped(ones(1), "w", drop=0.9, rescale="none", seed=seed).any()]
    assert dropped(ones(1), "w", drop=0.9, rescale="l1", seed=lost[0]).tolist() == [0.0]
