"""Tables of coefficients for people."""

from __future__ import annotations

import numpy as np

from optmerge.merging.coefficients import Static
from optmerge.merging.recipe import Direction, Group, ModelEntry, Recipe
from optmerge.merging.slices import Rows
from optmerge.tracking.coefficients import from_recipe, from_vector


def test_recipe_groups_come_in_depth_order() -> None:
    groups = (
        Group("head", ("h",), None, "head"),
        Group("layer.10", ("j",), 10, "layer"),
        Group("final-norm", ("n",), None, "final-norm"),
        Group("layer.2", ("c",), 2, "layer"),
        Group("embedding", ("e",), None, "embedding"),
    )
    values = np.arange(5.0)[:, None]
    recipe = Recipe(ModelEntry("b"), {"a": ModelEntry("a")}, (Direction("a", "expert"),), groups, Static(values))
    table = from_recipe(recipe)
    assert table.rows == ("embedding", "layer.2", "layer.10", "head", "final-norm")
    assert table.values[:, 0].tolist() == [4.0, 3.0, 1.0, 0.0, 2.0]


def test_vector_names_give_the_table_and_frozen_cells_are_unknown() -> None:
    table = from_vector(["embedding/a", "layer.1/a", "layer.0/a", "layer.0/b"], np.array([1.0, 2.0, 3.0, 4.0]))
    assert table.rows == ("embedding", "layer.0", "layer.1")
    assert table.columns == ("a", "b")
    assert np.array_equal(table.values, [[1, np.nan], [3, 4], [2, np.nan]], equal_nan=True)


def test_what_is_chosen_is_no_coefficient() -> None:
    table = from_vector(["model/a", "model/b", "method", "ties-split.density"], np.array([0.1, 0.2, 1.0, 2.0]))
    assert (table.rows, table.columns) == (("model",), ("a", "b"))
    assert table.spread is None


def test_labels_drop_what_all_rows_share() -> None:
    table = from_vector(["m.layers.0.up.weight/a", "m.layers.0.up.bias/a", "m.layers.1.up.weight/a"], np.zeros(3))
    assert table.labels == ("0.up", "0.up.bias", "1.up")


def test_one_row_keeps_its_name() -> None:
    assert from_vector(["model"], np.zeros(1)).labels == ("model",)


def test_slices_are_one_row_with_their_mean_and_spread() -> None:
    names = ["embedding/a", "layers.0.up.weight[0:3]/a", "layers.0.up.weight[0:3]/b"]
    table = from_vector(names, np.array([0.5, 1.0, 2.0, 3.0, 4.0, 4.0, 4.0]))
    assert table.rows == ("embedding", "layers.0.up.weight")
    np.testing.assert_allclose(table.values, [[0.5, np.nan], [2.0, 4.0]])
    assert table.spread is not None
    np.testing.assert_allclose(table.spread, [[0.0, np.nan], [np.sqrt(2 / 3), 0.0]])
    assert from_vector(["embedding/a"], np.array([0.5])).spread is None
    recipe = Recipe(
        ModelEntry("base"),
        {"a": ModelEntry("a")},
        (Direction("a", "expert"),),
        (Group("up", ("up.weight",), 0, "mlp", Rows(2, 5)), Group("embedding", ("embedding",), None, "embedding")),
        Static(np.array([[1.0], [3.0], [0.5]])),
    )
    shown = from_recipe(recipe)
    assert shown.rows == ("embedding", "up")
    assert shown.values.tolist() == [[0.5], [2.0]]
    assert shown.spread is not None
    assert shown.spread.tolist() == [[0.0], [1.0]]
