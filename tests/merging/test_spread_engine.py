"""Engines over parts of a model's parameters do together, bit for bit, what one engine over all of them does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from optmerge.merging.coefficients import Table
from optmerge.merging.products import delta_cosines, delta_norms, group_sizes
from optmerge.merging.slices import Columns, Cut, Rows
from optmerge.merging.sources import LowRank, Segment, Source
from optmerge.merging.spread_engine import AnyEngine, SpreadEngine, count_groups, engine_over


class Tied(nn.Module):
    """An embedding that is the output too, and three layers."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)

        def make(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator) * 0.3, requires_grad=False)

        self.embedding = make(11, 6)
        self.layers = nn.ParameterList([make(6, 6) for _ in range(3)])
        self.bias = make(6)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding[ids]
        for layer in self.layers:
            hidden = torch.tanh(hidden @ layer + self.bias)
        return hidden @ self.embedding.T


PARTS = [["embedding", "layers.0"], ["layers.1", "layers.2", "bias"]]
TENSOR_WISE = {"embedding": 0, "layers.0": 1, "layers.1": 2, "layers.2": 3, "bias": 4}
LAYER_WISE = {"embedding": 2, "layers.0": 0, "layers.1": 1, "layers.2": 1, "bias": 1}
CUTS: dict[str, Cut] = {"embedding": Columns(1, 11, 6), "layers.1": Rows(6, 6)}
CUT = {"embedding": 0, "layers.0": 6, "layers.1": 7, "layers.2": 13, "bias": 14}


def segments_of(model: nn.Module) -> Any:
    """Two experts, the second one's matrices of low rank, and a delta."""
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    made: dict[str, list[Segment]] = {}
    for number, (name, value) in enumerate(base.items()):
        generator = torch.Generator().manual_seed(number)
        dense = Source(value + 0.1 * torch.randn(value.shape, generator=generator), absolute=True)
        delta = Source(0.1 * torch.randn(value.shape, generator=generator), absolute=False)
        second: Source | LowRank = Source(value - 0.2, absolute=True)
        if value.ndim == 2:
            b = torch.randn(value.shape[0], 2, generator=generator)
            a = torch.randn(2, value.shape[1], generator=generator)
            second = LowRank(b, a, 0.1, lambda v=value, b=b, a=a: v + 0.1 * b @ a)  # type: ignore[misc]
        made[name] = [Segment((), value, (dense, second, delta))]
    return made.__getitem__


def pair(form: Any, group_of: Mapping[str, int], cuts: Any = None) -> list[tuple[Tied, AnyEngine]]:
    """A model with one engine, and one with an engine for each part."""
    found = []
    for parts in ([[name for part in PARTS for name in part]], PARTS):
        model = Tied()
        known = dict(model.named_parameters())
        parameters = [{name: known[name] for name in part} for part in parts]
        found.append((model, engine_over(parameters, segments_of(model), group_of, form=form, cuts=cuts)))
    return found


def table_of(group_of: Mapping[str, int], cuts: Any = None) -> Table:
    table: Table = np.random.default_rng(3).normal(0.4, 0.3, (count_groups(group_of, cuts), 3))
    return table


def gradient_of(model: Tied, engine: AnyEngine, **chosen: Any) -> Table:
    with engine.gradient(**chosen) as gatherer:
        for step in range(2):
            ids = torch.arange(5 * (step + 1)).remainder(11)
            nn.functional.cross_entropy(model(ids), ids.flip(0)).backward()  # type: ignore[no-untyped-call]
    return gatherer.table()


def assert_same_values(one: nn.Module, other: nn.Module) -> None:
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("form", ["accumulate", "hooks"])
@pytest.mark.parametrize(
    ("group_of", "cuts"), [(TENSOR_WISE, None), (LAYER_WISE, None), (CUT, CUTS)], ids=["tensor", "layer", "cut"]
)
@pytest.mark.parametrize("kernels", ["compiled", "torch"])
def test_it_is_the_engine(
    form: str, group_of: dict[str, int], cuts: Any, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels == "torch":
        monkeypatch.setattr("optmerge.merging.writing.compiled", lambda: None)
    (whole_model, whole), (model, spread) = pair(form, group_of, cuts)
    assert isinstance(spread, SpreadEngine)
    assert (spread.form, spread.num_groups, spread.num_directions) == (form, whole.num_groups, 3)
    table = table_of(group_of, cuts)
    for _ in range(2):
        assert spread.apply(table) == whole.apply(table)
        assert_same_values(whole_model, model)
        table[1] += 0.25  # then only what is in that row is written
    np.testing.assert_array_equal(gradient_of(model, spread), gradient_of(whole_model, whole))
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("form", ["accumulate", "hooks"])
def test_chosen_groups_and_directions(form: str) -> None:
    (whole_model, whole), (model, spread) = pair(form, TENSOR_WISE)
    for engine in (whole, spread):
        engine.apply(table_of(TENSOR_WISE))
    found = gradient_of(model, spread, groups=[1, 4], columns=[0, 2])
    np.testing.assert_array_equal(found, gradient_of(whole_model, whole, groups=[1, 4], columns=[0, 2]))
    assert np.flatnonzero(found.any(axis=1)).tolist() == [1, 4]
    assert np.flatnonzero(found.any(axis=0)).tolist() == [0, 2]


def test_a_group_on_both_devices_is_their_sum() -> None:
    """The order of a sum of float64 is all that may differ."""
    (whole_model, whole), (model, spread) = pair("accumulate", dict.fromkeys(TENSOR_WISE, 0))
    for engine in (whole, spread):
        engine.apply(np.array([[0.4, 0.3, 0.2]]))
    assert_same_values(whole_model, model)
    np.testing.assert_allclose(gradient_of(model, spread), gradient_of(whole_model, whole), rtol=1e-13)


def test_groups_and_directions_may_be_others_later() -> None:
    (whole_model, whole), (model, spread) = pair("hooks", LAYER_WISE)
    for engine in (whole, spread):
        engine.apply(table_of(LAYER_WISE))
    finer = [engine.regrouped(CUT, CUTS) for engine in (whole, spread)]
    table = table_of(CUT, CUTS)
    for engine in finer:
        engine.apply(table)
    assert_same_values(whole_model, model)
    np.testing.assert_array_equal(gradient_of(model, finer[1]), gradient_of(whole_model, finer[0]))

    def swapped(name: str) -> list[Segment]:
        return [Segment((), s.base, s.sources[::-1]) for s in segments_of(Tied())(name)]

    others = [engine.along(swapped, TENSOR_WISE) for engine in (whole, spread)]
    for engine in others:
        engine.apply(table_of(TENSOR_WISE))
    assert_same_values(whole_model, model)
    kept = [shard.workspace for shard in others[1].shards]
    assert kept == [shard.workspace for shard in spread.shards], "buffers are made once for each device"


def test_values_changed_from_outside_are_written_anew() -> None:
    (whole_model, whole), (model, spread) = pair("accumulate", TENSOR_WISE)
    table = table_of(TENSOR_WISE)
    for engine in (whole, spread):
        engine.apply(table)
    for parameter in model.parameters():
        parameter.fill_(7.0)
    assert spread.apply(table) == 0
    spread.forget()
    assert spread.apply(table) == len(TENSOR_WISE)
    assert_same_values(whole_model, model)


def test_a_pass_that_fails_leaves_no_gradient_anywhere() -> None:
    _, (model, spread) = pair("accumulate", TENSOR_WISE)
    spread.apply(table_of(TENSOR_WISE))

    def fail() -> None:
        with spread.gradient():
            model(torch.arange(5)).sum().backward()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


def test_sizes_norms_and_angles() -> None:
    (_, whole), (_, spread) = pair("accumulate", CUT, CUTS)
    np.testing.assert_array_equal(group_sizes(spread), group_sizes(whole))
    np.testing.assert_array_equal(delta_norms(spread, [0, 1]), delta_norms(whole, [0, 1]))
    np.testing.assert_array_equal(delta_cosines(spread, [0, 2]), delta_cosines(whole, [0, 2]))


def test_parameters_on_one_device_have_a_plain_engine() -> None:
    (_, whole), _ = pair("accumulate", TENSOR_WISE)
    assert whole.shards == (whole,)
