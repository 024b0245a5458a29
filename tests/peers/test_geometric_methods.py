"""The methods of geometry against mergekit's, on tensors of every kind and where a tensor is zero or the same in all.

``compat: mergekit`` is needed where the defaults are other merges: multi-SLERP's step is along logarithms here, and
along projections there, which add up to zero; a tensor of zeros is on a line with the other here, and at a right angle
to it there; rows are the inputs of an output here, and the last dimension there; a negative cosine counts as 0 in Model
Stock here, and extrapolates there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.merging.methods.toy import ToyModels, every_kind
from tests.peers.conftest import Peer
from tests.peers.merges import ours, same, theirs

pytestmark = pytest.mark.peers

SHARES = {"expert-0": 0.4, "expert-1": 1.5, "expert-2": 0.7}
SCOPES = ("tensor", "row", "column")
NO_MEAN = ("scale", "one")
"""Single numbers have a sign and no angle: of opposite ones mergekit takes the first's, or what rounding leaves."""


def toys(count: int, change: Callable[[str, str, torch.Tensor], torch.Tensor] | None = None) -> ToyModels:
    """Experts with tensors of every kind that has entries; ``change(expert, name, tensor)`` alters them."""
    whole = every_kind(count, seed=11)
    names = [name for name in whole.names if whole.base(name).numel()]
    alter = change or (lambda expert, name, tensor: tensor)
    experts = {
        expert: {name: alter(expert, name, whole.expert(expert, name)) for name in names} for expert in whole.experts
    }
    return ToyModels({name: whole.base(name) for name in names}, experts)


def zeroed(expert: str, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Zeros in a bias of the first expert, and in one row of a matrix."""
    if expert == "expert-0" and name == "attention.bias":
        return torch.zeros_like(tensor)
    if expert == "expert-0" and name == "mlp.up.weight":
        return torch.cat([torch.zeros_like(tensor[:1]), tensor[1:]])
    return tensor


def leaning(expert: str, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Task vectors at acute angles, one tensor's apart.

    Where they are nearly opposite, mergekit's cosines in fp32 leave no six digits of the merge.
    """
    return tensor - 0.25 if name == "embed.weight" and expert == "expert-1" else tensor + 1.2


def asked(models: ToyModels, base: bool) -> tuple[str, ...]:
    return ("base", *models.experts) if base else models.experts


@pytest.mark.parametrize("origin", ["base", "zero"])
def test_nuslerp(origin: str, peer: Peer, tmp_path: Path) -> None:
    models = toys(2, zeroed if origin == "zero" else leaning)
    jobs: list[dict[str, object]] = [
        {
            "weight": {"expert-0": 0.6, "expert-1": 1.4},
            "nuslerp_flatten": scope == "tensor",
            "nuslerp_row_wise": scope == "column",
        }
        for scope in SCOPES
    ]
    based = origin == "base"
    results = theirs(
        peer, tmp_path, models, "nuslerp", *jobs, listed=asked(models, based), base="base" if based else None
    )
    for scope, result in zip(SCOPES, results, strict=True):
        same(ours(models, "nuslerp", t=0.7, scope=scope, origin=origin, compat="mergekit"), result)
    # Convolutions and input-first matrices have other rows by default; whole tensors are the same, unless zero.
    plain = ours(models, "nuslerp", t=0.7, origin=origin)
    differ = {name for name, value in plain.items() if not torch.allclose(value, results[0][name], atol=1e-4)}
    assert differ == ({"attention.bias"} if origin == "zero" else set())
    by_row = ours(models, "nuslerp", t=0.7, scope="row", origin=origin)
    assert not torch.allclose(by_row["patch.weight"], results[1]["patch.weight"], atol=1e-4)


def test_slerp_with_a_tensor_of_zeros(peer: Peer, tmp_path: Path) -> None:
    models = toys(2, zeroed)
    (result,) = theirs(peer, tmp_path, models, "slerp", {"t": 0.3}, listed=models.experts, base="expert-0")
    same(ours(models, "slerp", t=0.3, compat="mergekit"), result)
    plain = ours(models, "slerp", t=0.3)
    differ = {name for name, value in plain.items() if not torch.allclose(value, result[name], atol=1e-4)}
    assert differ == {"attention.bias"}


@pytest.mark.parametrize("origin", ["base", "zero"])
def test_multislerp(origin: str, peer: Peer, tmp_path: Path) -> None:
    models, based = toys(3), origin == "base"
    jobs: list[dict[str, object]] = [{"weight": SHARES}, {"weight": 1.0}]
    weighted, plain = theirs(
        peer, tmp_path, models, "multislerp", *jobs, listed=asked(models, based), base="base" if based else None
    )
    same(ours(models, "multislerp", weights=SHARES, origin=origin, compat="mergekit"), weighted)
    same(ours(models, "multislerp", origin=origin, compat="mergekit"), plain)
    stepped = ours(models, "multislerp", weights=SHARES, origin=origin)
    assert not torch.allclose(stepped["embed.weight"], weighted["embed.weight"], rtol=0, atol=1e-5)


def test_karcher(peer: Peer, tmp_path: Path) -> None:
    models = toys(3, lambda expert, name, value: zeroed(expert, name, value) if name == "attention.bias" else value)
    jobs: list[dict[str, object]] = [{}, {"max_iter": 1}, {"max_iter": 0}]
    results = theirs(peer, tmp_path, models, "karcher", *jobs, listed=models.experts, base=None)
    for result, iterations in zip(results, (None, 1, 0), strict=True):
        found = ours(models, "karcher", iterations=iterations, compat="mergekit")
        for name in NO_MEAN:
            del found[name], result[name]
        same(found, result)


@pytest.mark.parametrize("count", [2, 3])
def test_model_stock(count: int, peer: Peer, tmp_path: Path) -> None:
    models = toys(count, leaning)
    jobs: list[dict[str, object]] = [{"filter_wise": False}, {"filter_wise": True}]
    results = theirs(peer, tmp_path, models, "model_stock", *jobs, listed=asked(models, True))
    for scope, result in zip(("tensor", "row"), results, strict=True):
        found = ours(models, "model_stock", scope=scope, compat="mergekit")
        if scope == "row":
            del found["embed.weight"], result["embed.weight"]  # rows near a pole
        same(found, result)
    plain = ours(models, "model_stock")
    assert torch.equal(plain.pop("embed.weight"), models.base("embed.weight"))  # not extrapolated away from the mean
    results[0].pop("embed.weight")
    same(plain, results[0])
