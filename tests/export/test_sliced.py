"""Recipes of slices: streamed merges, files, and what other formats say to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from optmerge.errors import ExportError, RecipeError
from optmerge.export import EXPORTERS
from optmerge.export.folders import plan_base
from optmerge.export.merged import TensorSink
from optmerge.export.safetensors_writer import ShardedWriter
from optmerge.merging.coefficients import Static
from optmerge.merging.deltas import Deltas
from optmerge.merging.engine import Engine
from optmerge.merging.merge import Merge, rows_of_parameters
from optmerge.merging.recipe import Recipe
from optmerge.models.family import Family
from optmerge.models.resident import ResidentModel
from tests.export.families import open_with_adapter, recipe_of, sliced_recipe
from tests.export.oracle import merged_values, tensors_on_disk

GetFamily = Callable[[str], Family]
KINDS = ["llama-tied", "gpt2", "mixtral", "vit", "bert"]


def resident_after(recipe: Recipe, family: Family) -> dict[str, torch.Tensor]:
    resident = ResidentModel(family, device=torch.device("cpu"), dtype=torch.float32)
    rows = rows_of_parameters(recipe, family)
    deltas = Deltas(family, recipe.directions, cache=None)
    Engine(resident.parameters, deltas.segments, rows.first, cuts=rows.cuts).apply(recipe.coefficients)
    return {name: parameter.detach() for name, parameter in resident.parameters.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunks", [0, 3])
def test_engine_and_streamed_merge_give_the_definitions_bits(
    kind: str, chunks: int, family: GetFamily, tmp_path: Path
) -> None:
    models = family(kind)
    recipe = sliced_recipe(models, chunks=chunks)
    values = merged_values(recipe, models)
    assert all(torch.equal(value, values[name]) for name, value in resident_after(recipe, models).items())
    plan = plan_base(recipe, models)
    with ShardedWriter(tmp_path, plan.specs, buffer_bytes=128) as writer:  # parts of rows too
        plan.stream(Merge(recipe, models), writer)
    written = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in tensors_on_disk(recipe, models).items())


@pytest.mark.parametrize("chunks", [0, 3])
def test_slices_that_are_alike_are_the_tensor_wise_merge(chunks: int, family: GetFamily) -> None:
    models = family("llama")
    sliced = sliced_recipe(models, chunks=chunks)
    table = np.random.default_rng(1).normal(0.3, 0.7, (len(sliced.groups), 2))
    whole = recipe_of(models, table)
    repeated = np.repeat(table, [group.count for group in sliced.groups], axis=0)
    sliced = replace(sliced, coefficient_fn=Static(repeated))
    theirs = resident_after(whole, models)
    assert all(torch.equal(value, theirs[name]) for name, value in resident_after(sliced, models).items())


def test_an_adapter_is_streamed_as_the_engine_applies_it(tmp_path: Path) -> None:
    models = open_with_adapter("llama", tmp_path)
    recipe = sliced_recipe(models)
    sink = TensorSink(plan_base(recipe, models).specs)
    plan_base(recipe, models).stream(Merge(recipe, models), sink)
    values = resident_after(recipe, models)
    expected = merged_values(recipe, models)
    for name, value in values.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
        assert torch.equal(sink.tensors[models.disk_names(name)[0]], value)


def test_a_saved_recipe_is_read_back_with_the_file_beside_it(family: GetFamily, tmp_path: Path) -> None:
    recipe = sliced_recipe(family("gpt2"))
    recipe.save(tmp_path / "recipe.yaml")
    again = Recipe.load(tmp_path / "recipe.yaml")
    assert again.groups == recipe.groups
    np.testing.assert_array_equal(again.coefficients, recipe.coefficients)
    sliced_recipe(family("gpt2"), seed=1).save(tmp_path / "recipe.yaml")
    assert len(list(tmp_path.iterdir())) == 2  # the former file is gone


def test_saving_a_recipe_removes_only_its_own_former_file(family: GetFamily, tmp_path: Path) -> None:
    recipe = sliced_recipe(family("gpt2"))
    recipe.save(tmp_path / "ab.yaml")
    recipe.save(tmp_path / "a*.yaml")
    sliced_recipe(family("gpt2"), seed=1).save(tmp_path / "a*.yaml")
    Recipe.load(tmp_path / "ab.yaml")
    assert len(list(tmp_path.iterdir())) == 4


def test_the_file_beside_a_recipe_is_checked(family: GetFamily, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    sliced_recipe(family("gpt2")).save(path)
    (beside,) = tmp_path.glob("*.slices")
    content = beside.read_bytes()
    beside.write_bytes(content[:-1] + b"x")
    with pytest.raises(RecipeError, match=r"not the file that the recipe was saved with"):
        Recipe.load(path)
    beside.unlink()
    with pytest.raises(RecipeError, match=r"there is no such file .*Keep it beside the recipe"):
        Recipe.load(path)
    with pytest.raises(RecipeError, match=r"expected the name of a file beside"):
        Recipe.from_yaml(path.read_text().replace(f"file: {beside.name}", "file: ../other"), path)
    beside.write_bytes(content)
    with pytest.raises(RecipeError, match=r"slices is .*expected the keys columns"):
        Recipe.from_yaml(path.read_text().replace("columns: 16", "colums: 16"), path)
    with pytest.raises(RecipeError, match=r"have shape \[16, 2\]; expected finite numbers of shape \[15, 2\]"):
        Recipe.from_yaml(path.read_text().replace("columns: 16", "columns: 15", 1), path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coefficients": {"a": 0.1}}, r"has both slices and coefficients"),
        ({"slices": None}, r"slices is None; expected a mapping"),
    ],
)
def test_a_group_has_slices_or_coefficients(
    changes: dict[str, object], message: str, family: GetFamily, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    sliced_recipe(family("gpt2")).save(path)
    body = yaml.safe_load(path.read_text())
    group = next(group for group in body["groups"] if "slices" in group)
    group |= changes
    with pytest.raises(RecipeError, match=message):
        Recipe.from_yaml(yaml.safe_dump(body), path)


def test_slices_that_no_group_has_are_refused(family: GetFamily, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    sliced_recipe(family("gpt2")).save(path)
    body = yaml.safe_load(path.read_text())
    names = [direction["name"] for direction in body["directions"]]
    cut = [group for group in body["groups"] if "slices" in group]
    del cut[0]["slices"]
    cut[0]["coefficients"] = dict.fromkeys(names, 0.1)
    with pytest.raises(RecipeError, match=rf"slices.file .*{cut[0]['name']}.*no group with slices"):
        Recipe.from_yaml(yaml.safe_dump(body), path)
    del body["groups"]
    body["coefficients"] = dict.fromkeys(names, 0.1)
    with pytest.raises(RecipeError, match=r"slices.file .*no group with slices"):
        Recipe.from_yaml(yaml.safe_dump(body), path)


def test_slices_of_another_model_are_refused(family: GetFamily) -> None:
    models = family("gpt2")
    recipe = sliced_recipe(models)
    first, *others = recipe.groups
    wider = replace(first, cut=replace(first.cut, rows=first.cut.rows + 1))  # type: ignore[type-var,union-attr]
    with pytest.raises(RecipeError, match=r"a group with slices is one parameter of that size"):
        rows_of_parameters(replace(recipe, groups=(wider, *others)), models)


def test_a_checkpoint_holds_the_recipe_and_the_file_beside_it(family: GetFamily, tmp_path: Path) -> None:
    models = family("llama")
    recipe = sliced_recipe(models)
    to = EXPORTERS["checkpoint"]().export(recipe, models, tmp_path / "merged")
    again = Recipe.load(to / "recipe.yaml")
    np.testing.assert_array_equal(again.coefficients, recipe.coefficients)
    assert "16 slices" in (to / "README.md").read_text()
    assert [path.name for path in to.glob("*.safetensors")] == ["model.safetensors"]  # servers load all that there are


def test_formats_that_have_no_slices_say_so(family: GetFamily, tmp_path: Path) -> None:
    models = family("llama")
    recipe = sliced_recipe(models)
    with pytest.raises(ExportError, match=r"mergekit cannot make this merge: .*columns.*Export a checkpoint instead"):
        EXPORTERS["mergekit"]().export(recipe, models, tmp_path / "config.yml")
    with pytest.raises(ExportError, match=r"\d+ coefficients of slices.*\.slices file beside the recipe"):
        EXPORTERS["coefficients"]().export(recipe, models, tmp_path / "table.csv")
    assert not list(tmp_path.iterdir())
