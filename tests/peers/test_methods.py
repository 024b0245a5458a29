"""Our methods against mergekit's: the same where they should be, and where ``compat: mergekit`` says so."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from tests.merging.methods.toy import ToyModels
from tests.peers.conftest import Peer
from tests.peers.merges import WEIGHTS, ours, random_models, same, theirs

pytestmark = pytest.mark.peers


@pytest.fixture
def models() -> ToyModels:
    return random_models()


def test_task_arithmetic_to_the_bit(models: ToyModels, peer: Peer, tmp_path: Path) -> None:
    (result,) = theirs(peer, tmp_path, models, "task_arithmetic", {"weight": WEIGHTS})
    for name, value in ours(models, "task_arithmetic", weights=WEIGHTS).items():
        assert torch.equal(value, result[name]), name


def test_linear(models: ToyModels, peer: Peer, tmp_path: Path) -> None:
    jobs: list[dict[str, object]] = [{"weight": WEIGHTS, "normalize": normalize} for normalize in (True, False)]
    results = theirs(peer, tmp_path, models, "linear", *jobs, listed=models.experts, base=None)
    for result, normalize in zip(results, (True, False), strict=True):
        same(ours(models, "linear", weights=WEIGHTS, normalize=normalize), result)


def test_slerp(models: ToyModels, peer: Peer, tmp_path: Path) -> None:
    two = ToyModels(models._base, {name: models._experts[name] for name in ("expert-0", "expert-1")})
    one = ToyModels(models._base, {"expert-0": models._experts["expert-0"]})
    (result,) = theirs(peer, tmp_path, two, "slerp", {"t": 0.3}, listed=two.experts, base="expert-0")
    same(ours(two, "slerp", t=0.3), result)
    (result,) = theirs(peer, tmp_path, one, "slerp", {"t": 0.6}, listed=("base", "expert-0"))
    same(ours(one, "slerp", t=0.6), result)


def test_ties(models: ToyModels, peer: Peer, tmp_path: Path) -> None:
    cases = list(itertools.product((0.01, 0.2, 0.53, 1.0), (True, False), ({}, WEIGHTS)))
    jobs: list[dict[str, object]] = [
        {"density": density, "normalize": normalize, "weight": weights or 1.0} for density, normalize, weights in cases
    ]
    results = theirs(peer, tmp_path, models, "ties", *jobs)
    for result, (density, normalize, weights) in zip(results, cases, strict=True):
        same(ours(models, "ties", compat="mergekit", density=density, normalize=normalize, weights=weights), result)
    paper = ours(models, "ties", density=0.2)  # another merge: thresholds are over the model, and ties of sign differ
    assert any(
        not torch.allclose(paper[name], results[cases.index((0.2, True, {}))][name], atol=1e-3) for name in paper
    )


def test_dare_rescales_to_the_l1_norm_as_ours_does(models: ToyModels, peer: Peer, tmp_path: Path) -> None:
    one = ToyModels(models._base, {"expert-0": models._experts["expert-0"]})
    parameters: dict[str, object] = {"weight": 1.0, "density": 0.6}
    (drawn,) = theirs(peer, tmp_path, one, "dare_linear", parameters, listed=("base", "expert-0"))
    for merged in (drawn, ours(one, "dare", compat="mergekit", drop=0.4)):
        for name in one.names:
            delta, tau = merged[name] - one.base(name), one.task_vector("expert-0", name)
            kept = tau * (delta.abs() > 1e-6)
            scale = tau.abs().sum() / kept.abs().sum() if kept.any() else 1.0
            torch.testing.assert_close(delta, kept * scale, rtol=1e-4, atol=1e-5, msg=name)


def test_dare_ties_without_a_drop(models: ToyModels, peer: Peer, tmp_path: Path) -> None:
    by_default, weighted = theirs(
        peer, tmp_path, models, "dare_ties", {"weight": 1.0}, {"weight": WEIGHTS, "normalize": True}
    )
    same(ours(models, "dare-ties", compat="mergekit", drop=0.0), by_default)
    same(ours(models, "dare-ties", compat="mergekit", drop=0.0, weights=WEIGHTS, normalize=True), weighted)
