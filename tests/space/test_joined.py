"""Coefficients that have variables in common: polynomials of depth, shared experts, tied tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optmerge.config.spaces import SpaceConfig
from optmerge.errors import ConfigError
from optmerge.runner.knowledge import variable_norms
from optmerge.space.build import build_space
from optmerge.space.space import SearchSpace


@dataclass(frozen=True)
class Role:
    kind: str
    layer: int | None
    part: str | None = None


LAYERS = 5
ROLES = {
    "embed.weight": Role("embedding", None),
    **{
        f"layers.{layer}.{name}.weight": Role({"q": "attention", "up": "mlp"}.get(name, name), layer)
        for layer in range(LAYERS)
        for name in ("q", "up", "norm")
    },
    "norm.weight": Role("final-norm", None),
    "lm_head.weight": Role("head", None),
}
DIRECTIONS = ("a", "b", "iso-c")
LANES = {"a": "experts", "b": "experts", "iso-c": "iso-c"}
TIE = {"match": "*.up.weight", "tie": "up"}
JOINED: list[dict[str, Any]] = [
    {"granularity": "layer-wise", "polynomial": 2},
    {"granularity": "layer-kind-wise", "polynomial": 1, "shared": True},
    {"granularity": "tensor-wise", "polynomial": 3, "rules": [{"match": "norm", "freeze": 0.2}]},
    {"granularity": "tensor-wise", "polynomial": 0},
    {"granularity": "tensor-wise", "rules": [TIE, {"match": "lm_head.*", "tie": "ends"}]},
    {"granularity": "layer-wise", "polynomial": 2, "rules": [TIE]},
    {"granularity": "layer-wise", "shared": True, "rules": [{"match": "embedding", "tie": "ends"}]},
    {"granularity": "layer-wise", "polynomial": 2, "rules": [{"match": "layers.0.*", "bounds": [0.0, 0.5]}]},
    {"granularity": "task-wise", "shared": True},
]


def space(directions: tuple[str, ...] = DIRECTIONS, **settings: Any) -> SearchSpace:
    return build_space(SpaceConfig.model_validate(settings), ROLES, directions, lanes=LANES)


DIMENSIONS = [(3 + 3) * 3, (2 * 3 + 3) * 2, (4 * 2 + 3) * 3, 6 * 3, 18 * 3 - 4 * 3, (3 + 1 + 3) * 3, 16, 21, 2]


@pytest.mark.parametrize(("settings", "dimension"), list(zip(JOINED, DIMENSIONS, strict=True)))
def test_dimension(settings: dict[str, Any], dimension: int) -> None:
    made = space(**settings)
    assert made.dimension == dimension
    assert len(set(made.names)) == dimension


@pytest.mark.parametrize("settings", JOINED)
@given(data=st.data())
def test_the_vector_the_table_and_their_gradients_agree(settings: dict[str, Any], data: st.DataObject) -> None:
    made = space(**settings)
    unit = np.array(data.draw(st.lists(st.floats(0, 1), min_size=made.dimension, max_size=made.dimension)))
    vector = made.lower + unit * (made.upper - made.lower)
    table = made.decode(vector)
    np.testing.assert_allclose(made.encode(table), vector, atol=1e-9)
    assert made.reaches(table)
    lower, upper = made.spread(made.lower), made.spread(made.upper)
    assert (table >= lower - 1e-12).all(), "bounds of variables are bounds of coefficients"
    assert (table <= upper + 1e-12).all()
    slope = np.random.default_rng(0).normal(size=table.shape)
    change = np.random.default_rng(1).normal(size=made.dimension)
    moved = ((made.decode(vector + change) - table) * slope).sum()
    np.testing.assert_allclose(made.pull_back(slope, vector) @ change, moved, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("settings", JOINED)
def test_a_variables_norm_is_that_of_what_it_moves(settings: dict[str, Any]) -> None:
    made = space(**settings)
    norms = np.random.default_rng(0).uniform(1.0, 2.0, size=made.index.shape)
    origin = made.decode(np.zeros(made.dimension))
    moved = [np.linalg.norm((made.decode(row) - origin) * norms) for row in np.eye(made.dimension)]
    np.testing.assert_allclose(variable_norms(made, norms), moved)


def test_coefficients_follow_the_polynomial() -> None:
    made = space(("a",), granularity="layer-wise", polynomial=2)
    assert list(made.names) == ["embedding/a", "layers@0/a", "layers@1/a", "layers@2/a", "final-norm/a", "head/a"]
    depth = np.linspace(0.0, 1.0, LAYERS)
    wanted = 0.9 - 0.8 * depth + 0.4 * depth**2
    table = made.decode(made.start)
    table[1 : 1 + LAYERS, 0] = wanted
    assert made.misfit(table) < 1e-12
    np.testing.assert_allclose(made.decode(made.encode(table))[1 : 1 + LAYERS, 0], wanted)
    np.testing.assert_allclose(made.encode(table)[[1, 3]], [0.9, 0.5])  # the ends are values


def test_what_no_polynomial_has_is_fitted_by_least_squares_and_its_misfit_told() -> None:
    made = space(("a",), granularity="layer-wise", polynomial=1)
    table = made.decode(made.start)
    table[1 : 1 + LAYERS, 0] = [0.0, 0.0, 1.0, 0.0, 0.0]
    np.testing.assert_allclose(made.decode(made.encode(table))[1 : 1 + LAYERS, 0], 0.2)
    assert made.misfit(table) == pytest.approx(0.8)
    assert not made.reaches(table)


def test_a_polynomial_has_no_more_control_points_than_layers() -> None:
    two = {name: role for name, role in ROLES.items() if role.layer is None or role.layer < 2}
    made = build_space(SpaceConfig(granularity="layer-wise", polynomial=5), two, ("a",))
    assert [name for name in made.names if "@" in name] == ["layers@0/a", "layers@1/a"]


def test_encoder_and_decoder_have_polynomials_of_their_own() -> None:
    roles = {f"{stack}.block.{n}.q": Role("attention", 3 * i + n) for i, stack in enumerate("ed") for n in range(3)}
    made = build_space(SpaceConfig(granularity="layer-kind-wise", polynomial=1), roles, ("a",))
    assert list(made.names) == [
        "e.block.attention@0/a",
        "e.block.attention@1/a",
        *(f"d.block.attention@{n}/a" for n in (0, 1)),
    ]
    np.testing.assert_allclose(made.decode(np.array([0.0, 1.0, 2.0, 4.0]))[:, 0], [0.0, 0.5, 1.0, 2.0, 3.0, 4.0])


def test_a_rule_of_some_layers_has_one_polynomial() -> None:
    """Its pattern may look like a layer's name."""
    roles = {f"layer.{n}.{name}": Role("mlp", n) for n in range(12) for name in ("in", "out")}
    rule = {"match": "layer.1*.out", "start": 0.5}
    config = SpaceConfig.model_validate({"granularity": "layer-wise", "polynomial": 1, "rules": [rule]})
    made = build_space(config, roles, ("a",))
    assert list(made.names) == [
        *(f"layer@{n}/a" for n in (0, 1)),
        *(f"layer+layer.1*.out@{n}/a" for n in (0, 1)),
    ]


def test_experts_share_and_a_whole_method_does_not() -> None:
    made = space(granularity="task-wise", shared=True)
    assert list(made.names) == ["model/experts", "model/iso-c"]
    assert made.decode(np.array([0.3, 1.4])).tolist() == [[0.3, 0.3, 1.4]]


def test_tied_tensors_have_one_coefficient_in_every_direction() -> None:
    made = space(rules=[TIE])
    names = [group.name for group in made.groups]
    tied = [names.index(f"layers.{layer}.up.weight") for layer in range(LAYERS)]
    assert [name for name in made.names if name.startswith("up/")] == ["up/a", "up/b", "up/iso-c"]
    table = made.decode(np.arange(made.dimension, dtype=np.float64))
    assert (table[tied] == table[tied[0]]).all()
    assert len(np.unique(table)) == made.dimension


def test_rules_of_one_tie_join_what_they_match() -> None:
    made = space(rules=[{"match": "embedding", "tie": "ends"}, {"match": "head", "tie": "ends"}])
    table = made.decode(np.arange(made.dimension, dtype=np.float64))
    assert table[0].tolist() == table[-1].tolist()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"granularity": "task-wise", "polynomial": 1}, "joins the groups of different layers"),
        ({"granularity": "column-wise", "polynomial": 1}, "joins the groups of different layers"),
        ({"granularity": "chunk-wise", "rules": [TIE]}, "slices variables of their own"),
        ({"granularity": "layer-wise", "polynomial": 1, "normalise": "softmax"}, "polynomial joins them"),
        ({"granularity": "layer-wise", "shared": True, "normalise": "sum"}, "shared joins them"),
        ({"rules": [TIE], "normalise": "sum"}, "a rule with tie joins them"),
        ({"granularity": "model-wise", "shared": True}, "leave shared out"),
        ({"rules": [TIE | {"tie": "up[0:3]"}]}, r"tie is 'up\[0:3\]'.*leave out"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        SpaceConfig.model_validate(settings)


def test_a_variable_has_one_pair_of_bounds() -> None:
    with pytest.raises(ConfigError, match=r"up/a is one variable for several coefficients.*\[0\.0, 0\.5\]"):
        space(rules=[TIE, {"match": "layers.3.*", "bounds": [0.0, 0.5]}])


def test_a_tie_is_not_called_like_a_group() -> None:
    with pytest.raises(ConfigError, match=r"rules\.0\.tie is 'lm_head\.weight'"):
        space(rules=[{"match": "norm", "tie": "lm_head.weight"}])


def test_an_optional_rule_may_match_nothing() -> None:
    rule = {"match": "vision", "freeze": 0.0}
    with pytest.raises(ConfigError, match="matches nothing"):
        space(rules=[rule])
    assert space(rules=[rule | {"optional": True}]).dimension == space().dimension
