"""Vector <-> coefficients: layouts, rules, and the transpose property of the pull-back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optmerge.config.spaces import GRANULARITIES, SpaceConfig
from optmerge.errors import ConfigError
from optmerge.merging.slices import Columns, Rows
from optmerge.space.build import build_space
from optmerge.space.space import SearchSpace


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


@dataclass(frozen=True)
class Shape:
    shape: tuple[int, ...]
    input_first: bool = False

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


SHAPES = {name: Shape((4,)) if "norm" in name else Shape((6, 4), input_first="mlp" in name) for name in ROLES}


def space(
    directions: tuple[str, ...] = ("a", "b"), magnitudes: dict[str, dict[str, float]] | None = None, **settings: object
) -> SearchSpace:
    return build_space(SpaceConfig.model_validate(settings), ROLES, directions, shapes=SHAPES, magnitudes=magnitudes)


@pytest.mark.parametrize(
    ("granularity", "groups", "dimension"),
    [
        ("model-wise", 1, 1),
        ("task-wise", 1, 2),
        ("layer-wise", 5, 10),
        ("layer-kind-wise", 9, 18),
        ("tensor-wise", 9, 18),
        ("column-wise", 9, 2 * (4 * 4 + 2 * 6 + 3 * 4)),
    ],
)
def test_dimension(granularity: str, groups: int, dimension: int) -> None:
    made = space(granularity=granularity)
    assert (len(made.groups), made.dimension) == (groups, dimension)
    assert made.num_rows == max(groups, dimension // 2)
    assert [name for group in made.groups for name in group.parameters] == list(ROLES) or granularity == "layer-wise"


def test_embedding_final_norm_and_head_have_groups_of_their_own() -> None:
    names = [group.name for group in space(granularity="layer-wise").groups]
    assert names == ["embedding", "layer.0", "layer.1", "final-norm", "head"]


@pytest.mark.parametrize("granularity", GRANULARITIES)
@given(data=st.data())
def test_encode_undoes_decode_and_pull_back_is_its_transpose(granularity: str, data: st.DataObject) -> None:
    made = space(
        granularity=granularity,
        rules=[
            {"match": "norm", "freeze": 0.25},
            {"match": "head", "direction": "*" if granularity == "model-wise" else "b", "bounds": [0.0, 0.5]},
        ],
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
    assert made.searched_groups.tolist() == [1, 2, 3, 4]
    assert made.searched_parameters == list(ROLES)[1:]


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
    assert [name for name in made.names if not name.startswith("layer")] == [
        "final-norm/b",
        "head/a",
        "head/b",
    ]
    assert 0 not in made.searched_groups
    with pytest.raises(ConfigError, match=r"experts are equal to the base"):
        build_space(SpaceConfig(), ROLES, ("a",), untouched={"a": set(ROLES)})


def test_the_rows_and_variables_of_a_cut_tensor_stand_together() -> None:
    made = space(granularity="column-wise", rules=[{"match": "head", "freeze": 0.5}])
    attention = [group.name for group in made.groups].index("layers.0.attn.weight")
    rows = made.rows[attention]
    assert (rows.start, rows.stop) == (4, 8)
    assert made.index[rows].T.tolist() == [[8, 9, 10, 11], [12, 13, 14, 15]]
    assert made.names[13] == "layers.0.attn.weight[1]/b"
    assert made.row_of["layers.0.attn.weight"] == 4
    assert made.cuts["layers.0.attn.weight"] == Columns(1, 6, 4)
    assert made.cuts["layers.0.mlp.weight"] == Rows(6, 4)
    assert made.layers[4:8] == (0,) * 4
    assert made.kinds[4:8] == ("attention",) * 4
    assert made.decode(made.start)[-4:].tolist() == [[0.5, 0.5]] * 4
    assert "lm_head.weight" not in made.searched_parameters


def test_a_bias_has_one_coefficient() -> None:
    roles, shapes = {"up.bias": Role("mlp", 0)}, {"up.bias": Shape((7,))}
    assert build_space(SpaceConfig(granularity="column-wise"), roles, ("a",), shapes=shapes).dimension == 1


def test_chunks_go_where_task_vectors_are_large() -> None:
    large = {name: 9.0 if name == "layers.1.attn.weight" else 1.0 for name in ROLES}
    sizes = {name: SHAPES[name].numel for name in ROLES}
    made = space(granularity="chunk-wise", chunks={"power": 1.0, "budget": 2.0}, magnitudes={"a": large, "b": large})
    importance = {name: large[name] * sizes[name] for name in ROLES}
    expected = {name: math.floor(18 * value / sum(importance.values())) for name, value in importance.items()}
    for group in made.groups:
        assert group.count == max(1, min(expected[group.name], 6)), group.name
    assert expected["layers.1.attn.weight"] > 6 > 1 > expected["norm.weight"] == 0


def test_a_tensor_without_a_chunk_stays_where_the_search_starts() -> None:
    made = space(granularity="chunk-wise", chunks={"power": 1.0})
    norm = made.rows[[group.name for group in made.groups].index("norm.weight")]
    assert made.held[norm].all()
    assert made.index[norm].max() == -1
    assert made.decode(made.start)[norm].tolist() == [[0.3, 0.3]]
    table = np.random.default_rng(0).uniform(size=made.frozen.shape)
    started = made.started_at(table)
    np.testing.assert_array_equal(started.decode(made.start)[norm], table[norm])
    np.testing.assert_array_equal(started.decode(made.start)[made.index >= 0], 0.3)
    assert made.frozen[norm].tolist() == [[0.3, 0.3]]


def test_chunks_of_frozen_tensors_go_to_the_others() -> None:
    rules = [{"match": "embedding", "freeze": 0.0}, {"match": "head", "freeze": 0.0}]
    counts = {group.name: group.count for group in space(granularity="chunk-wise", rules=rules).groups}
    free = {group.name: group.count for group in space(granularity="chunk-wise").groups}
    assert counts["embed.weight"] == counts["lm_head.weight"] == 1
    assert all(counts[name] >= free[name] for name in ROLES if name not in ("embed.weight", "lm_head.weight"))
    total = sum(space(granularity="chunk-wise", rules=rules, chunks={"budget": 3.0}).held.any(axis=1))
    assert total == 0


def test_chunks_are_of_chunk_wise_spaces() -> None:
    with pytest.raises(ValueError, match=r"chunks are of granularity chunk-wise, and granularity is tensor-wise"):
        SpaceConfig.model_validate({"chunks": {"budget": 1.2}})


@pytest.mark.parametrize("settings", [{"start": 0.0}, {"chunks": {"budget": 0.01}}])
def test_chunks_that_no_tensor_gets_are_named(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"no tensor gets a chunk.*other than 0.*space\.chunks\.budget"):
        space(granularity="chunk-wise", **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"bounds": [-1.0, math.inf]},
        {"rules": [{"freeze": math.nan}]},
        {"rules": [{"start": math.inf}]},
        {"rules": [{"bounds": [-math.inf, 1.0]}]},
        {"granularity": "chunk-wise", "chunks": {"budget": math.inf}},
        {"granularity": "chunk-wise", "chunks": {"power": math.inf}},
    ],
)
def test_settings_are_finite(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"finite"):
        SpaceConfig.model_validate(settings)


def test_a_million_columns_take_no_time_per_column() -> None:
    roles = {f"layers.{layer}.weight": Role("mlp", layer) for layer in range(50)}
    shapes = {name: Shape((1, 20_000)) for name in roles}
    made = build_space(SpaceConfig(granularity="column-wise"), roles, ("a", "b"), shapes=shapes)
    assert made.dimension == 2_000_000
    assert len(made.names.compact) == 100
    assert made.names[-1] == "layers.49.weight[19999]/b"
    table = made.decode(made.start)
    np.testing.assert_array_equal(made.encode(table), made.start)
