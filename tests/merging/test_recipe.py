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
        (("heads: own", ""), "the key 'heads' is missing"),
        (("- l0.b", "- head.w"), "tensor head.w is in group layer.0 and in group head"),
        (("    x: 0.1", "    x: .nan"), "the coefficient of x in group layer.0 is nan"),
        (("  expert: x", "  expert: x\n  name: z"), "not among the experts|not a whole recipe"),
        (("name: iso-c\n    tolerance", "name: iso-d\n    tolerance"), "not a whole recipe"),
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
