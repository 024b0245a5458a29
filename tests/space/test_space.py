"""Vector <-> coefficients: layouts, rules, and the transpose property of the pull-back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optmerge.config.spaces import GRANULARITIES, SpaceConfig
from optmerge.errors import ConfigError
from optmerge.space.space import SearchSpace, build_space


@dataclass(frozen=True)
class Role:
    kind: str
    layer: int | None
    part: str | None = None


ROLES = {
    "embed.weight": Role("embedding", None),
    "layers.0.attn.weight": Role("attention", 0),
    "layers.0.mlp.weight": Role("mlp", 0),
    "layers.0.norm.weight": Role("norm", 0),
    "layers.1.attn.weight": Role("attention", 1),
    "layers.1.mlp.weight": Role("mlp", 1),
    "layers.1.norm.weight": Role("norm", 1),
    "norm.weight": Role("final-norm", None),
    "lm_head.weight": Role("head", None),
}


def space(directions: tuple[str, ...] = ("a", "b"), **settings: object) -> SearchSpace:
    return build_space(SpaceConfig.model_validate(settings), ROLES, directions)


@pytest.mark.parametrize(
    ("granularity", "groups", "dimension"),
    [
        ("model-wise", 1, 1),
        ("task-wise", 1, 2),
        ("layer-wise", 5, 10),
        ("layer-kind-wise", 9, 18),
        ("tensor-wise", 9, 18),
    ],
)
def test_dimension(granularity: str, groups: int, dimension: int) -> None:
    made = space(granularity=granularity)
    assert (len(made.groups), made.dimension) == (groups, dimension)
    assert [name for group in made.groups for name in group.parameters] == list(ROLES) or granularity == "layer-wise"


def test_embedding_final_norm_and_head_have_groups_of_their_own() -> None:
    names = [group.name for group in space(granularity="layer-wise").groups]
    assert names == ["embedding", "layer.0", "layer.1", "final-norm", "head"]


@pytest.mark.parametrize("granularity", GRANULARITIES)
@given(data=st.data())
def test_encode_undoes_decode_and_pull_back_is_its_transpose(granularity: str, data: st.DataObject) -> None:
    made = space(
        granularity=granularity,
        rules=[{"match": "norm", "freeze": 0.25}, {"match": "head", "direction": "b", "bounds": [0.0, 0.5]}],
    )
    unit = np.array(data.draw(st.lists(st.floats(0, 1), min_size=made.dimension, max_size=made.dimension)))
    vector = made.lower + unit * (made.upper - made.lower)
    np.testing.assert_allclose(made.encode(made.decode(vector)), vector, atol=1e-12)
    slope = np.random.default_rng(0).normal(size=made.index.shape)
    change = np.random.default_rng(1).normal(size=made.dimension)
    directional = ((made.decode(vector + change) - made.decode(vector)) * slope).sum()
    np.testing.assert_allclose(made.pull_back(slope, vector) @ change, directional, rtol=1e-9, atol=1e-9)


def test_frozen_coefficients_stay_and_their_groups_need_no_gradient() -> None:
    made = space(granularity="layer-wise", rules=[{"match": "embedding", "freeze": 0.0}])
    table = made.decode(made.upper)
    assert table[0].tolist() == [0.0, 0.0]
    assert made.searched_groups == [1, 2, 3, 4]


def test_a_rule_that_hits_part_of_a_group_splits_it() -> None:
    made = space(granularity="layer-wise", rules=[{"match": "norm", "freeze": 0.1}])
    assert [group.name for group in made.groups] == [
        "embedding",
        "layer.0",
        "layer.0+norm",
        "layer.1",
        "layer.1+norm",
        "final-norm",
        "head",
    ]
    assert made.decode(made.start)[2].tolist() == [0.1, 0.1]


def test_the_last_matching_rule_wins_and_start_zero_counts() -> None:
    made = space(rules=[{"match": "*", "freeze": 0.5}, {"match": "head", "start": 0.0}])
    assert made.dimension == 2
    assert made.start.tolist() == [0.0, 0.0]


def test_rules_by_direction() -> None:
    made = space(("a", "b", "iso-c"), rules=[{"match": "*", "direction": "iso-c", "bounds": [0, 3]}])
    assert made.upper.reshape(-1, 3)[:, 2].tolist() == [3.0] * 9


def test_a_rule_that_matches_nothing_is_named_with_near_matches() -> None:
    with pytest.raises(ConfigError, match=r"space\.rules\.0 matches nothing.*Did you mean 'embedding'"):
        space(rules=[{"match": "embeding", "freeze": 0.0}])


def test_nothing_left_to_search() -> None:
    with pytest.raises(ConfigError, match=r"every coefficient is frozen"):
        space(rules=[{"match": "*", "freeze": 0.3}])


def test_a_start_outside_a_rules_bounds() -> None:
    with pytest.raises(ConfigError, match=r"outside its bounds"):
        space(start=0.8, rules=[{"match": "head", "bounds": [0.0, 0.5]}])


def test_a_coefficient_that_multiplies_only_zeros_is_no_variable() -> None:
    untouched = {"a": {"embed.weight", "norm.weight"}, "b": {"embed.weight"}}
    made = build_space(SpaceConfig(granularity="layer-wise"), ROLES, ("a", "b"), untouched=untouched)
    assert [variable.name for variable in made.variables if not variable.name.startswith("layer")] == [
        "final-norm/b",
        "head/a",
        "head/b",
    ]
    assert 0 not in made.searched_groups
    with pytest.raises(ConfigError, match=r"experts are equal to the base"):
        build_space(SpaceConfig(), ROLES, ("a",), untouched={"a": set(ROLES)})
