"""Spaces whose coefficients are whole numbers: masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from optmerge.config.spaces import SpaceConfig
from optmerge.models.roles import Role
from optmerge.space.build import build_space
from optmerge.space.space import SearchSpace

ROLES = {
    "embed": Role("embedding", None),
    "layers.0.up": Role("mlp", 0),
    "layers.1.up": Role("mlp", 1),
}


def space(**settings: Any) -> SearchSpace:
    asked = {"granularity": "tensor-wise", "bounds": (0, 1), "whole": True, "start": 1.0, **settings}
    return build_space(SpaceConfig.model_validate(asked), ROLES, ["a", "b"])


def test_every_variable_takes_whole_numbers() -> None:
    masks = space()
    assert masks.dimension == 6
    assert masks.integer is not None
    assert masks.integer.all()
    assert masks.start.tolist() == [1.0] * 6
    assert space(whole=False).integer is None


def test_the_nearest_vector_is_whole() -> None:
    table = np.array([[0.3, 0.6], [1.4, -2.0], [1.0, 0.0]])
    assert space().encode(table).tolist() == [0, 1, 1, 0, 1, 0]
    assert not space().reaches(table)
    assert space().reaches(np.round(np.clip(table, 0, 1)))
    assert space(bounds=(-2, 3)).encode(table).tolist() == [0, 1, 1, -2, 1, 0]


def test_a_start_that_a_baseline_will_give_is_whole_until_then() -> None:
    assert space(start="best-baseline").start.tolist() == [0.0] * 6


def test_rounded_variables_have_a_slope() -> None:
    masks = space(whole="straight-through", rules=[{"match": "embedding", "freeze": 0.3}])
    assert masks.integer is None
    vector = np.array([0.49, 0.51, 1.0, 0.0])
    assert masks.decode(vector).tolist() == [[0.3, 0.3], [0, 1], [1, 0]]
    slope = np.arange(6.0).reshape(3, 2)
    assert masks.pull_back(slope, vector).tolist() == [2, 3, 4, 5]
    assert masks.encode(np.full((3, 2), 0.6)).tolist() == [1, 1, 1, 1]


def test_rules_and_shared_coefficients() -> None:
    rules = [{"match": "embedding", "freeze": 0.3}, {"match": "layers.1.up", "bounds": [0, 2], "start": 2}]
    masks = space(rules=rules, shared=True)
    assert masks.dimension == 2
    assert masks.upper.tolist() == [1, 2]
    assert masks.decode(np.array([0.0, 2.0])).tolist() == [[0.3, 0.3], [0, 0], [2, 2]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bounds": (0, 0.5), "start": 0.0}, "whole asks for whole numbers, and bounds or start are 0, 0.5, 0"),
        ({"start": 0.5}, "bounds or start are 0, 1, 0.5"),
        ({"rules": [{"bounds": (0.5, 2)}]}, "bounds or start are 0.5, 2"),
        ({"normalise": "softmax"}, "normalise: softmax makes others"),
        ({"granularity": "layer-wise", "polynomial": 1}, "polynomial makes others"),
    ],
)
def test_what_is_not_whole_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        space(**settings)
