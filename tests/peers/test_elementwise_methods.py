"""Breadcrumbs, DELLA and SCE beside mergekit's, with ``compat: mergekit``; TIES stands in `test_methods`."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from tests.merging.methods.toy import ToyModels, every_kind
from tests.peers.conftest import Peer
from tests.peers.merges import WEIGHTS, ours, random_models, same, theirs

pytestmark = pytest.mark.peers


@pytest.fixture
def models() -> ToyModels:
    return random_models()


def scaled(models: ToyModels, factor: float) -> ToyModels:
    """The same models with task vectors of another length."""
    experts = {
        expert: {
            name: models.base(name) + factor * (models.expert(expert, name) - models.base(name))
            for name in models.names
        }
        for expert in models.experts
    }
    return ToyModels({name: models.base(name) for name in models.names}, experts)


@pytest.mark.parametrize("elected", [False, True])
def test_breadcrumbs(models: ToyModels, peer: Peer, tmp_path: Path, elected: bool) -> None:
    """Equal in every tensor, also where gamma makes no outlier: there mergekit before 0.1.5 kept nothing, by mistake.

    By default ours is another merge: by rows, with the outliers of every row, and a density beside them.
    """
    cases = list(itertools.product(((0.9, 0.01), (0.5, 0.1), (0.15, 0.3), (0.95, 0.2), (1.0, 0.2)), ({}, WEIGHTS)))
    jobs: list[dict[str, object]] = [
        {"density": density, "gamma": gamma, "weight": weights or 1.0} for (density, gamma), weights in cases
    ]
    name = "breadcrumbs-ties" if elected else "breadcrumbs"
    results = theirs(peer, tmp_path, models, name.replace("-", "_"), *jobs)
    for result, ((density, gamma), weights) in zip(results, cases, strict=True):
        settings: dict[str, object] = {"density": density, "outliers": gamma, "weights": weights}
        same(ours(models, name, compat="mergekit", **settings), result)
    paper = ours(models, name, density=0.5, outliers=0.1)
    assert not torch.allclose(paper["head.weight"], results[cases.index(((0.5, 0.1), {}))]["head.weight"], atol=1e-3)


def test_breadcrumbs_ties_as_a_mean(models: ToyModels, peer: Peer, tmp_path: Path) -> None:
    job: dict[str, object] = {"density": 0.7, "gamma": 0.1, "weight": WEIGHTS, "normalize": True}
    (result,) = theirs(peer, tmp_path, models, "breadcrumbs_ties", job)
    settings: dict[str, object] = {"density": 0.7, "outliers": 0.1, "weights": WEIGHTS, "normalize": True}
    same(ours(models, "breadcrumbs-ties", compat="mergekit", **settings), result)


@pytest.mark.parametrize("factor", [1.0, 1e-4])
def test_sce(models: ToyModels, peer: Peer, tmp_path: Path, factor: float) -> None:
    """With short task vectors mergekit takes equal shares, unlike the paper; ``selected: shares`` it does not have."""
    models = scaled(models, factor)
    densities = (0.0, 0.1, 0.37, 0.9, 1.0)
    jobs: list[dict[str, object]] = [{"select_topk": density} for density in densities]
    results = theirs(peer, tmp_path, models, "sce", *jobs)
    for result, density in zip(results, densities, strict=True):
        same(ours(models, "sce", compat="mergekit", density=density), result)
    # Without compat it is the same merge where the shares are, and no two signs are tied.
    paper = ours(models, "sce", density=1.0)
    differs = any(not torch.allclose(paper[name], results[-1][name], rtol=0, atol=factor * 1e-3) for name in paper)
    assert differs == (factor == 1e-4)


def test_della_by_its_law(peer: Peer, tmp_path: Path) -> None:
    """Masks cannot agree (mergekit's come from a global generator), so what does not depend on them is compared.

    Per rank within a row, how often an entry stays; and the L1 norm of each tensor, which both rescale to. The paper
    divides by the probability instead, so that the expectation is the task vector.
    """
    rows, width, drop, epsilon = 4000, 5, 0.5, 0.3
    generator = torch.Generator().manual_seed(0)
    expert = {"w": torch.rand(rows, width, generator=generator) + 0.1, "v": torch.rand(4000, generator=generator) + 0.1}
    one = ToyModels({name: torch.zeros_like(value) for name, value in expert.items()}, {"expert-0": expert})
    parameters: dict[str, object] = {"weight": 1.0, "density": 1 - drop, "epsilon": epsilon}
    listed = ("base", "expert-0")
    (drawn,) = theirs(peer, tmp_path, one, "della_linear", parameters, listed=listed)
    (elected,) = theirs(peer, tmp_path, one, "della", parameters, listed=listed)
    settings: dict[str, object] = {"drop": drop, "epsilon": epsilon, "compat": "mergekit"}
    expected = torch.linspace(1 - drop - epsilon, 1 - drop + epsilon, width)
    merges = [drawn, elected, ours(one, "della-linear", **settings), ours(one, "della", **settings)]
    for merged in merges:
        stays = (merged["w"] != 0).float().gather(1, expert["w"].argsort(dim=1)).mean(0)
        torch.testing.assert_close(stays, expected, rtol=0, atol=5 * (0.25 / rows) ** 0.5)
        for name, tau in expert.items():
            kept = tau * (merged[name] != 0)
            assert kept.count_nonzero() / kept.numel() == pytest.approx(1 - drop, abs=0.04)
            torch.testing.assert_close(merged[name], kept * (tau.sum() / kept.sum()), rtol=1e-5, atol=1e-6)


def test_della_without_a_drop_is_its_election(models: ToyModels, peer: Peer, tmp_path: Path) -> None:
    jobs: list[dict[str, object]] = [{"weight": WEIGHTS}, {"weight": WEIGHTS, "normalize": False}]
    mean, total = theirs(peer, tmp_path, models, "della", *jobs)
    same(ours(models, "della", compat="mergekit", drop=0.0, weights=WEIGHTS), mean)
    same(ours(models, "della", compat="mergekit", drop=0.0, weights=WEIGHTS, normalize=False), total)
    (linear,) = theirs(peer, tmp_path, models, "della_linear", {"weight": WEIGHTS})
    same(ours(models, "della-linear", compat="mergekit", drop=0.0, weights=WEIGHTS), linear)


def test_bf16_models_are_merged_in_fp32(peer: Peer, tmp_path: Path) -> None:
    """mergekit subtracts, sums and rounds in the models' dtype; ours agrees to a few of its steps, which are 2^-8."""
    whole = every_kind(3, dtype=torch.bfloat16, seed=11)
    names = [name for name in whole.names if whole.base(name).numel()]
    models = ToyModels(
        {name: whole.base(name) for name in names},
        {expert: {name: whole.expert(expert, name) for name in names} for expert in whole.experts},
    )
    (result,) = theirs(peer, tmp_path, models, "sce", {"select_topk": 1.0})
    for name, value in ours(models, "sce", compat="mergekit", density=1.0).items():
        torch.testing.assert_close(value, result[name].float(), rtol=2**-6, atol=2**-6, msg=name)
