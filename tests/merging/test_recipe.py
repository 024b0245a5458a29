"""Recipes survive a round trip and say what is wrong with a damaged file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optmerge.config.methods import IsoCConfig
from optmerge.errors import RecipeError
from optmerge.merging.coefficients import Static
from optmerge.merging.recipe import Direction, Group, ModelEntry, Recipe


def recipe(table: object = ((0.1, 0.2, 0.3), (1e-5, -0.7, 1 / 3))) -> Recipe:
    return Recipe(
        base=ModelEntry("zoo/base", "ab" * 32, None),
        experts={"x": ModelEntry("zoo/x"), "y": ModelEntry("org/y", revision="abc")},
        directions=(Direction("x", "expert"), Direction("y", "expert"), Direction("iso-c", "method", IsoCConfig())),
        groups=(Group("layer.0", ("l0.w", "l0.b"), 0, "layer"), Group("head", ("head.w",), None, "head")),
        coefficient_fn=Static(np.array(table)),
        heads="own",
        dtype="bfloat16",
        created={"run": "first"},
    )


def same(a: Recipe, b: Recipe) -> bool:
    return a.to_yaml() == b.to_yaml() and np.array_equal(a.coefficients, b.coefficients)


def test_round_trip(tmp_path: Path) -> None:
    recipe().save(tmp_path / "recipe.yaml")
    assert same(Recipe.load(tmp_path / "recipe.yaml"), recipe())


@given(st.lists(st.floats(-1e3, 1e3), min_size=6, max_size=6))
def test_every_digit_of_every_coefficient_survives(values: list[float]) -> None:
    made = recipe(np.array(values).reshape(2, 3))
    assert np.array_equal(Recipe.from_yaml(made.to_yaml()).coefficients, made.coefficients)


def test_coefficients_are_read_only() -> None:
    with pytest.raises(ValueError, match=r"read-only"):
        recipe().coefficients[0, 0] = 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("optmerge_recipe: 1", "optmerge_recipe: 9"), "recipe format 9; this optmerge reads 1"),
        (("optmerge_recipe: 1", "merge_method: linear"), "not an optmerge recipe"),
        (("heads: own", "heads: mine"), "heads is 'mine'; expected one of own, merged, zero-shot, auto"),
        (("dtype: bfloat16", "dtype: bf16"), "dtype is 'bf16'; expected one of float32, bfloat16"),
        (("tokenizer: base", "tokenizer: z"), "tokenizer is 'z'; expected one of base, x, y"),
        (("created:", "craeted:"), "'craeted' is not a key of a recipe.*Did you mean 'created'"),
        (("  x:\n    reference: zoo/x", "  x:\n    refrence: zoo/x"), r"'refrence' is not a key of experts\.x"),
        (("- l0.b", "- head.w"), "tensor head.w is in group layer.0 and in group head"),
        (("    x: 0.1", "    x: .nan"), "the coefficient of x in group layer.0 is nan"),
        (("  expert: x", "  expert: z"), r"directions\[0\].expert is 'z'; expected one of x, y"),
        (("name: x\n  expert: x", "name: z\n  expert: x"), "an expert's direction is called as it: x"),
        (("name: iso-c\n    tolerance", "name: iso-d\n    tolerance"), "method.name is 'iso-d'.*Did you mean 'iso-c'"),
        (("tolerance: 1.0e-06", "tolerance: -1"), r"directions\[2\].method.tolerance: Input should be greater"),
        (("    x: 0.1", "    z: 0.1"), "group layer.0 has a coefficient of 'z'; the directions are x, y, iso-c"),
        (("    x: 0.1\n", ""), "group layer.0 has no coefficient of 'x'. Write 0"),
        (("  layer: 0", "  layer: first"), r"groups\[0\].layer is 'first'"),
        (("base:", "base: ["), "not valid YAML"),
    ],
)
def test_damaged_recipes(change: tuple[str, str], message: str) -> None:
    text = recipe().to_yaml()
    assert change[0] in text
    with pytest.raises(RecipeError, match=message):
        Recipe.from_yaml(text.replace(*change, 1), "r.yaml")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"There is no recipe file"):
        Recipe.load(tmp_path / "recipe.yaml")


def test_a_weight_file_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes([0xFF, 0xFE, 0x80]))
    with pytest.raises(RecipeError, match=r"model\.safetensors is not an optmerge recipe"):
        Recipe.load(tmp_path / "model.safetensors")


SHORT = """
optmerge_recipe: 1
base: zoo/base
experts: {x: zoo/x, y: org/y@v2}
coefficients: {x: 0.4, y: 1e-3}
"""


def test_the_short_form() -> None:
    made = Recipe.from_yaml(SHORT)
    assert made.base == ModelEntry("zoo/base")
    assert made.experts == {"x": ModelEntry("zoo/x"), "y": ModelEntry("org/y@v2")}
    assert made.directions == (Direction("x", "expert"), Direction("y", "expert"))
    assert made.groups == (Group("model", ("*",), None, "model"),)
    assert made.coefficients.tolist() == [[0.4, 0.001]]
    assert (made.heads, made.dtype, made.tokenizer, made.method) == ("auto", "auto", "base", "task_arithmetic")
    assert same(Recipe.from_yaml(made.to_yaml()), made)
    assert "tensors: '*'" in made.to_yaml()


def test_an_experts_name_may_be_a_number() -> None:
    made = Recipe.from_yaml("{optmerge_recipe: 1, base: b, experts: {1: x, 2: y}, coefficients: {2: 0.2, 1: 0.1}}")
    assert list(made.experts) == ["1", "2"]
    assert made.coefficients.tolist() == [[0.1, 0.2]]
    assert same(Recipe.from_yaml(made.to_yaml()), made)


@pytest.mark.parametrize(
    ("directions", "expected"),
    [
        ("[experts, iso-c]", ["x", "y", "iso-c"]),
        ("[iso-c, y]", ["iso-c", "y"]),
        ("[{name: flat, method: {name: iso-c, tolerance: 0.1}}]", ["flat"]),
        ("[{method: {name: iso-c}}, {expert: x}]", ["iso-c", "x"]),
    ],
)
def test_directions_by_hand(directions: str, expected: list[str]) -> None:
    numbers = ", ".join(f"{name}: {index}" for index, name in enumerate(expected))
    text = SHORT.replace("coefficients: {x: 0.4, y: 1e-3}", f"directions: {directions}\ncoefficients: {{{numbers}}}")
    made = Recipe.from_yaml(text)
    assert [direction.name for direction in made.directions] == expected
    assert made.coefficients.tolist() == [list(range(len(expected)))]
    assert same(Recipe.from_yaml(made.to_yaml()), made)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("base: zoo/base", ""), "the key 'base' is missing"),
        (("base: zoo/base", "base: 3"), "base is 3; expected a model"),
        (("experts: {x: zoo/x, y: org/y@v2}", "experts: {}"), "names no expert"),
        (("experts: {x: zoo/x, ", "experts: {base: zoo/x, "), "calls an expert 'base'"),
        (("experts: {x: zoo/x, y: org/y@v2}", "experts: [x]"), r"experts is \['x'\]; expected a mapping"),
        (("coefficients: {x: 0.4, y: 1e-3}", ""), r"neither groups nor coefficients. Write `coefficients: {x: 0.3, y:"),
        (("coefficients:", "groups: []\ncoefficients:"), "both groups and coefficients"),
        (("coefficients:", "coeficients:"), "Did you mean 'coefficients'"),
        (("x: 0.4", "x: high"), "the coefficient of x in coefficients is 'high'; expected a finite number"),
        (("x: 0.4", "x: true"), "is True; expected a finite number"),
        (("x: 0.4, ", ""), "coefficients has no coefficient of 'x'"),
        (("x: 0.4, ", "x: 0.4, yy: 1, "), "has a coefficient of 'yy'.*Did you mean 'y'"),
        (("coefficients:", "directions: [experts, x]\ncoefficients:"), "'x' stands 2 times"),
        (("coefficients:", "directions: []\ncoefficients:"), "there are none"),
        (("coefficients:", "directions: [iso]\ncoefficients:"), "expected experts, one of the experts x, y, or one of"),
        (("coefficients:", "directions: [{name: x}]\ncoefficients:"), "expected name with expert, method, or both"),
        (("coefficients: {x: 0.4, y: 1e-3}", "groups: []"), "groups is empty"),
        (("coefficients: {x: 0.4, y: 1e-3}", "groups: [{tensors: [[w]], coefficients: {}}]"), r"tensors is \['w'\]"),
        (("coefficients:", "method: iso-c\ncoefficients:"), r"method is 'iso-c'.*write `directions: \[iso-c\]`"),
        (("coefficients:", "method: [ties]\ncoefficients:"), r"method is \['ties'\]; expected task_arithmetic"),
        (("coefficients:", "method: dare\ncoefficients:"), r"write one direction per expert: `{expert: x, method: {na"),
        (("coefficients: {x: 0.4, y: 1e-3}", "groups: [{coefficients: {x: 1, y: 1}}]"), "the key 'tensors' is missing"),
    ],
)
def test_mistakes_in_a_short_recipe(change: tuple[str, str], message: str) -> None:
    assert change[0] in SHORT
    with pytest.raises(RecipeError, match=message) as told:
        Recipe.from_yaml(SHORT.replace(*change, 1), "r.yaml")
    assert str(told.value).startswith("r.yaml")
    assert "\n" not in str(told.value)


def test_an_unknown_setting_of_a_method_gets_its_near_match() -> None:
    text = (
        "optmerge_recipe: 1\nbase: b\nexperts: {x: x, y: y}\n"
        "directions: [{method: {name: ties, densty: 0.5}}]\ncoefficients: {ties: 1}\n"
    )
    with pytest.raises(RecipeError, match=r"densty is no setting of the method.*Did you mean 'density'"):
        Recipe.from_yaml(text)
