"""Coefficients that sum to one: their Jacobian against autograd, the way back, and what cannot be normalised."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optmerge.config.spaces import SpaceConfig
from optmerge.errors import ConfigError
from optmerge.space.build import build_space
from optmerge.space.space import SearchSpace
from tests.space.test_space import ROLES, space

KINDS = ["sum", "softmax"]
DIRECTIONS = ("a", "b", "c")


def made(kind: str, **settings: object) -> SearchSpace:
    """Layer-wise, with a frozen direction in one group and a group that is frozen whole."""
    rules = [{"match": "norm", "freeze": 0.25}, {"match": "head", "direction": "b", "freeze": 0.5}]
    return space(DIRECTIONS, **{"granularity": "layer-wise", "rules": rules, "normalise": kind, **settings})


def as_torch(made: SearchSpace, kind: str, vector: torch.Tensor) -> torch.Tensor:
    """`SearchSpace.decode` in plain torch, one group after the other."""
    rows = []
    for row, frozen in zip(made.index, made.frozen, strict=True):
        columns = np.flatnonzero(row >= 0)
        values = torch.tensor(frozen)
        if columns.size:
            own = vector[torch.tensor(row[columns])]
            own = own / own.sum() if kind == "sum" else own.softmax(0)
            values = values.index_put((torch.tensor(columns),), own)
        rows.append(values)
    return torch.stack(rows)


def a_vector(made: SearchSpace, data: st.DataObject) -> np.ndarray:
    unit = np.array(data.draw(st.lists(st.floats(0, 1), min_size=made.dimension, max_size=made.dimension)))
    return made.lower + unit * (made.upper - made.lower)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_decode_and_its_jacobian_equal_autograd(kind: str, data: st.DataObject) -> None:
    whole = made(kind, bounds=[0.1, 2.0])
    vector = a_vector(whole, data)
    slope = np.random.default_rng(0).normal(size=whole.index.shape)
    leaf = torch.tensor(vector, requires_grad=True)
    table = as_torch(whole, kind, leaf)
    np.testing.assert_allclose(whole.decode(vector), table.detach().numpy(), rtol=1e-12, atol=0)
    (expected,) = torch.autograd.grad((table * torch.tensor(slope)).sum(), leaf)
    np.testing.assert_allclose(whole.pull_back(slope, vector), expected.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_encode_finds_a_vector_with_the_same_coefficients(kind: str, data: st.DataObject) -> None:
    whole = made(kind, bounds=[0.1, 2.0])
    table = whole.decode(a_vector(whole, data))
    again = whole.encode(table)
    assert (again >= whole.lower).all()
    assert (again <= whole.upper).all()
    np.testing.assert_allclose(whole.decode(again), table, rtol=1e-9)
    assert whole.reaches(table)


@pytest.mark.parametrize("kind", KINDS)
def test_searched_coefficients_sum_to_one_and_frozen_ones_stay(kind: str) -> None:
    whole = made(kind)
    vector = np.random.default_rng(1).uniform(0.1, 1.0, whole.dimension)
    table = whole.decode(vector)
    for row, (index, coefficients) in enumerate(zip(whole.index, table, strict=True)):
        if (index >= 0).any():
            assert coefficients[index >= 0].sum() == pytest.approx(1.0)
        assert coefficients[index < 0].tolist() == whole.frozen[row][index < 0].tolist()
    head = [group.name for group in whole.groups].index("head")
    assert table[head, 1] == 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_the_average_is_within_reach_and_what_does_not_sum_to_one_is_not(kind: str) -> None:
    whole = space(DIRECTIONS, granularity="layer-wise", normalise=kind)
    shape = whole.index.shape
    assert whole.reaches(np.full(shape, 1 / 3))
    for table in (np.zeros(shape), np.full(shape, 0.3)):
        assert not whole.reaches(table)
    np.testing.assert_allclose(whole.decode(whole.encode(np.full(shape, 0.3))), 1 / 3)


def test_a_softmax_never_reaches_one_expert_alone_but_a_sum_does() -> None:
    one = np.tile([1.0, 0.0, 0.0], (5, 1))
    assert space(DIRECTIONS, granularity="layer-wise", normalise="sum").reaches(one)
    soft = space(DIRECTIONS, granularity="layer-wise", normalise="softmax")
    assert not soft.reaches(one)
    assert soft.decode(soft.encode(one))[:, 0].min() > 0.9  # e^3 against twice e^-1: as near as the bounds let it


def test_a_large_softmax_does_not_overflow() -> None:
    whole = space(DIRECTIONS, granularity="task-wise", normalise="softmax", bounds=[-2000.0, 2000.0])
    assert whole.decode(np.array([2000.0, 2000.0, -2000.0])).tolist() == [[0.5, 0.5, 0.0]]


def test_a_sum_of_zero_says_which_group_and_what_to_do() -> None:
    whole = space(("a", "b"), granularity="layer-wise", normalise="sum")
    vector = whole.encode(np.full(whole.index.shape, 0.5))
    vector[2:4] = [0.3, -0.3]
    for call in (whole.decode, lambda v: whole.pull_back(np.ones(whole.index.shape), v)):
        with pytest.raises(ZeroDivisionError, match=r"group layer\.0 sum to 0.*lower end above 0"):
            call(vector)


def test_what_cannot_be_normalised_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model-wise has one number.*task-wise"):
        SpaceConfig.model_validate({"granularity": "model-wise", "normalise": "sum"})
    with pytest.raises(ConfigError, match=r"a group's only coefficient is 1"):
        space(("a",), normalise="softmax")
    with pytest.raises(ConfigError, match=r"nothing can start there: the variables of group .* sum to 0"):
        space(DIRECTIONS, normalise="sum", start=0.0)


def test_the_only_searched_coefficient_of_a_group_is_one_and_no_variable() -> None:
    untouched = {"b": {"embed.weight"}}
    config = SpaceConfig.model_validate({"granularity": "layer-wise", "normalise": "softmax"})
    whole = build_space(config, ROLES, ("a", "b"), untouched=untouched)
    assert whole.decode(whole.start)[0].tolist() == [1.0, 0.0]
    assert 0 not in whole.searched_groups
    assert not any(name.startswith("embedding") for name in whole.names)
