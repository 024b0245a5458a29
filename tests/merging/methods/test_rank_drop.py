"""DELLA's drop by rank: its probabilities, its expectation, and what the masks depend on (Deep et al. 2024)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optmerge.config.methods import DellaConfig, DellaLinearConfig, MethodConfig
from optmerge.merging.methods import TensorKind, build_method
from optmerge.merging.methods.drop import Dropped, Rescale
from optmerge.merging.methods.rank_drop import RankDropped, stay_probabilities
from optmerge.merging.methods.vectors import RawVectors, TaskVectors
from tests.merging.methods.toy import ToyModels, of_deltas, random


def read(vectors: TaskVectors, name: str = "w") -> torch.Tensor:
    result = torch.full_like(vectors.models.base(name), torch.nan)
    for chunk in vectors.chunks(vectors.models.experts[0], name):
        vectors.oriented(result, name)[chunk.box] = chunk.values
    return result


def dropped(
    models: ToyModels, drop: float, epsilon: float, *, rescale: Rescale = "none", seed: int = 0, limit: int = 1 << 15
) -> torch.Tensor:
    raw = RawVectors(models, by_rows=True, limit=limit)
    return read(RankDropped(raw, drop=drop, epsilon=epsilon, rescale=rescale, seed=seed))


def merged(config: MethodConfig, models: ToyModels) -> torch.Tensor:
    return build_method(config, models.experts).delta(models, "w")


@given(st.integers(1, 300), st.floats(0.01, 0.98), st.floats(0, 1))
def test_probabilities(size: int, drop: float, part: float) -> None:
    epsilon = part * min(drop, 1 - drop) * 0.99
    stays = stay_probabilities(size, drop, epsilon)
    assert stays.mean().item() == pytest.approx(1 - drop)
    assert (stays.diff() >= 0).all()
    assert (stays > 0).all()
    if size > 1:
        assert stays[0].item() == pytest.approx(1 - drop - epsilon)
        assert stays[-1].item() == pytest.approx(1 - drop + epsilon)


@pytest.mark.parametrize("rescale", ["inverse", "l1", "none"])
def test_without_epsilon_it_is_dares_drop(rescale: Rescale) -> None:
    models = of_deltas([{"w": random(torch.Generator().manual_seed(0), 30, 11, dtype=torch.float32)}])
    expected = read(Dropped(RawVectors(models), drop=0.4, rescale=rescale, seed=3))
    torch.testing.assert_close(dropped(models, 0.4, 0.0, rescale=rescale, seed=3), expected)


def test_a_small_entry_goes_more_often_than_a_large_one() -> None:
    magnitudes = torch.rand(2000, 5, generator=torch.Generator().manual_seed(1)) + 0.1
    kept = dropped(of_deltas([{"w": magnitudes}]), 0.5, 0.4) != 0
    order = magnitudes.argsort(dim=1)
    shares = kept.double().gather(1, order).mean(0)
    for share, expected in zip(shares.tolist(), (0.1, 0.3, 0.5, 0.7, 0.9), strict=True):
        assert share == pytest.approx(expected, abs=5 * (0.25 / 2000) ** 0.5)


def test_the_expectation_over_seeds_is_the_task_vector() -> None:
    delta = random(torch.Generator().manual_seed(0), 4, 12)
    models = of_deltas([{"w": delta}])
    mean = sum(dropped(models, 0.5, 0.3, rescale="inverse", seed=seed) for seed in range(800)) / 800
    # An entry that stays with probability q >= .2 has a standard error of |delta| sqrt((1 - q) / q / 800).
    assert ((mean - delta).abs() / (delta.abs() * (4 / 800) ** 0.5)).max() < 4.5


def test_rescaling() -> None:
    delta = random(torch.Generator().manual_seed(0), 4, 50)
    models = of_deltas([{"w": delta}])
    mask = dropped(models, 0.5, 0.3) != 0
    ranks = delta.abs().argsort(dim=1).argsort(dim=1)
    stays = 0.2 + 0.6 * ranks / 49
    torch.testing.assert_close(dropped(models, 0.5, 0.3, rescale="inverse"), delta * mask / stays)
    by_norm = dropped(models, 0.5, 0.3, rescale="l1")
    torch.testing.assert_close(by_norm, delta * mask * (delta.abs().sum() / (delta * mask).abs().sum()))
    torch.testing.assert_close(by_norm.abs().sum(), delta.abs().sum())


def test_rows_are_ranked_by_themselves_and_chunks_do_not_matter() -> None:
    delta = random(torch.Generator().manual_seed(0), 9, 14)
    scaled = delta * torch.logspace(-3, 3, 9, dtype=torch.float64)[:, None]
    mask = dropped(of_deltas([{"w": delta}]), 0.5, 0.4) != 0
    assert torch.equal(dropped(of_deltas([{"w": scaled}]), 0.5, 0.4) != 0, mask)
    for limit in (1, 14, 50):
        assert torch.equal(dropped(of_deltas([{"w": delta}]), 0.5, 0.4, limit=limit) != 0, mask)


def test_an_input_first_matrix_is_dropped_as_the_turned_one() -> None:
    delta = random(torch.Generator().manual_seed(0), 9, 14)
    turned = of_deltas([{"w": delta.mT.contiguous()}], kinds={"w": TensorKind("mlp", True, (14, 9))})
    plain = of_deltas([{"w": delta}], kinds={"w": TensorKind("mlp", False, (9, 14))})
    assert torch.equal(dropped(turned, 0.5, 0.4).mT, dropped(plain, 0.5, 0.4))


def test_a_row_of_one_entry_and_no_drop() -> None:
    ones = of_deltas([{"w": torch.ones(2000, 2)}])
    assert torch.equal(dropped(ones, 0.0, 0.4, rescale="inverse"), torch.ones(2000, 2))
    alone = dropped(of_deltas([{"w": torch.ones(1)}]), 0.5, 0.4, rescale="inverse")
    assert alone.tolist() in ([0.0], [2.0])


def test_della_elects_and_averages_and_della_linear_adds_up() -> None:
    generator = torch.Generator().manual_seed(5)
    deltas = [random(generator, 8, 16) for _ in range(3)]
    models = of_deltas([{"w": delta} for delta in deltas])
    alone = {"drop": 0.4, "epsilon": 0.2}
    parts = build_method(DellaLinearConfig.model_validate(alone), models.experts).expert_deltas(models, "w")
    torch.testing.assert_close(merged(DellaLinearConfig.model_validate(alone), models), torch.stack(parts).sum(0))
    sign = torch.stack(parts).sum(0).sign()
    agree = [part * (part.sign() == sign) for part in parts]
    count = torch.stack([part != 0 for part in agree]).sum(0).clamp_min(1)
    torch.testing.assert_close(merged(DellaConfig.model_validate(alone), models), torch.stack(agree).sum(0) / count)
    sums = DellaConfig.model_validate({**alone, "normalize": False})
    torch.testing.assert_close(merged(sums, models), torch.stack(agree).sum(0))


def test_probabilities_outside_of_their_range_are_refused_with_what_would_do() -> None:
    assert DellaConfig(drop=0.0, epsilon=0.3).epsilon == 0.3  # nothing is dropped, so epsilon has no effect
    with pytest.raises(ValueError, match=r"probabilities from -0\.1 to 0\.3.*lower epsilon below 0\.1"):
        DellaConfig(drop=0.1, epsilon=0.2)
    with pytest.raises(ValueError, match=r"from 0\.7 to 1\.1"):
        DellaConfig(drop=0.9, epsilon=0.2)
