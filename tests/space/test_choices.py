"""A space that chooses: one vector, the coefficients of one setting, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from optmerge.config.alternatives import OneOfConfig, read_alternatives
from optmerge.config.methods import IsoCConfig, MethodConfig
from optmerge.config.spaces import SpaceConfig
from optmerge.errors import ConfigError
from optmerge.merging.alternatives import Alternatives, expand_alternatives, with_choice
from optmerge.merging.directions import expand_directions
from optmerge.space.build import build_space
from optmerge.space.choices import ChoosingSpace, choosing

EXPERTS = ["a", "b"]
METHODS: list[dict[str, Any]] = [
    {"name": "task_arithmetic"},
    {"name": "ties-split", "density": [0.1, 0.2, 0.5], "scope": ["model", "tensor"]},
    {"name": "tsv-m"},
]


@dataclass(frozen=True)
class Role:
    layer: int | None
    kind: str
    part: str | None = None


ROLES = {f"layer.{n}.weight": Role(n, "attention") for n in range(3)} | {"head": Role(None, "head")}


def alternatives(*others: MethodConfig) -> Alternatives:
    plain = expand_directions(["experts", *others], EXPERTS)
    return expand_alternatives(read_alternatives(METHODS), plain, EXPERTS)


def space(**settings: object) -> ChoosingSpace:
    config = SpaceConfig.model_validate({"granularity": "layer-wise", "start": 0.3, **settings})
    return choosing(build_space(config, ROLES, EXPERTS), alternatives())


def test_every_setting_has_directions_of_its_own() -> None:
    own = alternatives()
    assert len(own.settings) == 1 + 3 * 2 + 1
    assert len(own.directions) == 2 * len(own.settings)
    assert [own.directions[column].name for column in own.columns[0]] == ["a", "b"]
    named = "ties-split[density=0.2,scope=model]"
    row = own.settings.index((1, (1, 0)))
    assert [own.directions[column].name for column in own.columns[row]] == [f"{named}:a", f"{named}:b"]
    config = own.directions[own.columns[row][0]].config
    assert config is not None
    assert config.model_dump() == {"name": "ties-split", "density": 0.2, "scope": "model", "weights": None}


def test_the_choice_stands_behind_the_coefficients() -> None:
    own = space()
    assert list(own.names)[-4:] == ["head/b", "method", "ties-split.density", "ties-split.scope"]
    assert own.dimension == 4 * 2 + 3
    assert own.integer.tolist() == [False] * 8 + [True] * 3
    assert own.lower[-3:].tolist() == [0, 0, 0]
    assert own.upper[-3:].tolist() == [2, 2, 1]
    assert own.start[-3:].tolist() == [0, 1, 0]  # task_arithmetic, TIES' own density, the whole model
    assert own.choices == {
        "method": ("task_arithmetic", "ties-split", "tsv-m"),
        "ties-split.scope": ("model", "tensor"),
    }


@pytest.mark.parametrize(
    ("choice", "label"),
    [
        ([0, 2, 1], "task_arithmetic"),
        ([1, 0, 1], "ties-split[density=0.1,scope=tensor]"),
        ([1, 2, 0], "ties-split[density=0.5,scope=model]"),
        ([2, 0, 0], "tsv-m"),
    ],
)
def test_a_vector_has_the_coefficients_of_its_setting(choice: list[int], label: str) -> None:
    own = space()
    vector = np.concatenate([np.linspace(-0.5, 1.5, 8), choice])
    table = own.decode(vector)
    columns = own.columns_at(vector)
    names = ["a", "b"] if label == "task_arithmetic" else [f"{label}:a", f"{label}:b"]
    assert [own.directions[column] for column in columns] == names
    assert own.method_at(vector) == label.partition("[")[0]
    assert table[:, columns].tolist() == np.linspace(-0.5, 1.5, 8).reshape(4, 2).tolist()
    assert not np.delete(table, columns, axis=1).any()
    assert own.reaches(table)
    assert own.decode(own.encode(table)).tolist() == table.tolist()


def test_what_does_not_matter_takes_its_usual_value() -> None:
    own = space()
    vector = np.concatenate([np.full(8, 0.4), [2, 0, 1]])
    assert own.encode(own.decode(vector))[-3:].tolist() == [2, 1, 0]


def test_baselines_are_made_of_usual_values() -> None:
    shown = {name.rpartition(":")[0] or name for name in space().usual}
    assert shown == {"a", "b", "ties-split[density=0.2,scope=model]", "tsv-m"}


def test_the_gradient_is_that_of_the_setting() -> None:
    own = space()
    vector = np.concatenate([np.full(8, 0.4), [1, 1, 0]])
    gradient = np.arange(own.decode(vector).size, dtype=np.float64).reshape(own.decode(vector).shape)
    slope = own.pull_back(gradient, vector)
    assert slope[:8].tolist() == gradient[:, own.columns_at(vector)].ravel().tolist()
    assert slope[8:].tolist() == [0, 0, 0]


def test_squares_are_means_over_settings() -> None:
    own = space()
    squares = np.ones((4, len(own.directions)))
    squares[:, own.columns_at(own.start)] = 9.0
    assert own.gather_squares(squares) == pytest.approx([2.0] * 8 + [0.0] * 3)


def test_coefficients_may_be_shared_or_frozen() -> None:
    own = space(shared=True, rules=[{"match": "head", "freeze": 0.5}])
    assert list(own.names)[:-3] == ["layer.0/all", "layer.1/all", "layer.2/all"]
    table = own.decode(np.array([0.1, 0.2, 0.3, 1, 2, 0]))
    assert table[:, own.columns_at(np.array([0.1, 0.2, 0.3, 1, 2, 0]))].tolist() == [
        [0.1, 0.1],
        [0.2, 0.2],
        [0.3, 0.3],
        [0.5, 0.5],
    ]
    assert own.reaches(table)


def test_whole_methods_stand_beside_every_setting() -> None:
    own = alternatives(IsoCConfig())
    common = [direction.name for direction in own.directions].index("iso-c")
    assert own.columns.shape == (8, 3)
    assert (own.columns[:, 2] == common).all()
    plain = build_space(SpaceConfig(granularity="task-wise"), ROLES, [*EXPERTS, "iso-c"])
    both = choosing(plain, own)
    vector = np.array([0.2, 0.3, 1.4, 1, 2, 1])
    assert both.decode(vector)[0, common] == 1.4
    assert both.encode(both.decode(vector)).tolist() == vector.tolist()


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ([{"name": "iso-c"}], "iso-c is not a sum of one part per expert"),
        ([{"name": "ties-splt", "density": [0.1, 0.2]}], "Did you mean 'ties-split'"),
        ([{"name": "tsv-m"}, {"name": "tsv-m"}], "tsv-m appears more than once"),
        ([{"name": "tsv-m"}], "nothing to choose; use method: tsv-m"),
        ([{"name": "ties-split", "density": [0.5]}], "ties-split.density is a list of 1"),
        ([{"name": "ties-split", "density": [0.5, 0.1]}], "rising order"),
        ([{"name": "ties-split", "density": [0.5, 1.5]}], "ties-split.density: .*less than or equal to 1"),
        ([{"name": "ties-split", "densty": [0.5, 0.7]}], "ties-split.densty: Extra inputs"),
        ([{"name": "dare", "seed": list(range(99))}], "make 99 combinations.*at most 64"),
        ([{"name": "dare", "weights": {"a": 1}, "drop": [0.1, 0.5]}], "the weights of dare are what is searched"),
    ],
)
def test_what_cannot_be_chosen_is_refused(methods: list[dict[str, object]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_alternatives(methods)


def test_names_that_collide_are_refused() -> None:
    plain = expand_directions(["experts"], ["a", "dare"])
    methods = read_alternatives([{"name": "dare", "drop": [0.1, 0.5]}])
    with pytest.raises(ConfigError, match=r"experts\.dare: an expert is called like the method dare"):
        expand_alternatives(methods, plain, ["a", "dare"])


WHOLES: list[dict[str, Any]] = [{"name": "iso-c"}, {"name": "ties", "density": [0.1, 0.2, 0.5]}]


def among_wholes() -> ChoosingSpace:
    chosen = read_alternatives(WHOLES, whole=True)
    plain = expand_directions(["experts", OneOfConfig(methods=WHOLES)], EXPERTS)
    assert [direction.name for direction in plain] == ["a", "b", "one-of"]
    names = [direction.name for direction in plain]
    built = build_space(SpaceConfig(granularity="layer-wise", start=0.3), ROLES, names)
    return choosing(built, expand_alternatives(chosen, plain, EXPERTS))


def test_a_whole_method_of_several_has_one_place_beside_the_experts() -> None:
    own = among_wholes()
    assert own.directions == ("a", "b", "iso-c", "ties[density=0.1]", "ties[density=0.2]", "ties[density=0.5]")
    assert list(own.names)[2] == "layer.0/one-of"
    assert list(own.names)[-2:] == ["method", "ties.density"]
    assert own.usual == {"a", "b", "iso-c", "ties[density=0.2]"}
    coefficients = np.linspace(0.1, 1.2, 12)
    for choice, column in (([0, 1], 2), ([1, 0], 3), ([1, 2], 5)):
        vector = np.concatenate([coefficients, choice])
        table = own.decode(vector)
        assert table[:, [0, 1, column]].tolist() == coefficients.reshape(4, 3).tolist()
        assert not np.delete(table, [0, 1, column], axis=1).any()
        assert own.encode(table).tolist() == vector.tolist()
        assert own.method_at(vector) is None


def test_what_is_known_of_what_may_stand_in_a_place_is_known_of_the_place() -> None:
    own = among_wholes().alternatives
    known = {"a": 9, "iso-c": 1, "ties[density=0.1]": 2, "ties[density=0.2]": 3, "ties[density=0.5]": 4}
    assert with_choice(known, own, sum)["one-of"] == 10
    assert with_choice(known, alternatives(), sum) == known
    assert with_choice(known, None, sum) == known
