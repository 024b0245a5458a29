"""What every exporter must do, run over all of them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optmerge.errors import ExportError, RunError
from optmerge.export import EXPORTERS
from optmerge.export.coefficients import coefficient_table, read_coefficients
from optmerge.merging.recipe import Recipe
from optmerge.models.family import Family
from tests.export.families import random_recipe, recipe_of

GetFamily = Callable[[str], Family]

# (format, what to write): every format in each of its forms
TARGETS = [
    ("checkpoint", "merged"),
    ("mergekit", "merge.yml"),
    ("coefficients", "table.yaml"),
    ("coefficients", "table.json"),
    ("coefficients", "table.csv"),
]
every_target = pytest.mark.parametrize(("name", "target"), TARGETS)


def read_back(name: str, path: Path) -> dict[str, dict[str, float]]:
    """Tensor -> direction -> coefficient, as the format's own readers would find it."""
    if name == "coefficients":
        return read_coefficients(path)
    if name == "checkpoint":
        return coefficient_table(Recipe.load(path / "recipe.yaml"))
    config = yaml.safe_load(path.read_text())
    table: dict[str, dict[str, float]] = {}
    for model in config["models"]:
        rules = model["parameters"]["weight"]
        for tensor in [rule["filter"] for rule in rules if "filter" in rule]:  # mergekit: first substring that fits
            first = next(rule for rule in rules if rule.get("filter", "") in tensor)
            table.setdefault(tensor, {})[Path(model["model"]).name] = first["value"]
    return table


def contents(path: Path) -> dict[str, bytes]:
    """Every file at or below a path."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def test_every_format_is_covered_and_described() -> None:
    assert {name for name, _ in TARGETS} == set(EXPORTERS)
    for name, exporter in EXPORTERS.items():
        assert exporter.name == name
        assert exporter.summary
        assert exporter.__doc__


@every_target
def test_every_coefficient_comes_back_exactly(name: str, target: str, family: GetFamily, tmp_path: Path) -> None:
    recipe = random_recipe(family("llama"))
    written = EXPORTERS[name]().export(recipe, family("llama"), tmp_path / target)
    assert written == tmp_path / target
    assert read_back(name, written) == coefficient_table(recipe)


@every_target
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_floats_survive(
    name: str, target: str, data: st.DataObject, family: GetFamily, tmp_path_factory: pytest.TempPathFactory
) -> None:
    models = family("llama-tied")
    shape = (len(models.parameters), len(models.experts))
    numbers = st.floats(allow_nan=False, allow_infinity=False, width=64)
    if name == "checkpoint":
        numbers = st.floats(-4, 4)  # the merge is made with them
    values = data.draw(st.lists(numbers, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    recipe = recipe_of(models, np.array(values).reshape(shape))
    written = EXPORTERS[name]().export(recipe, models, tmp_path_factory.mktemp("floats") / target)
    assert read_back(name, written) == coefficient_table(recipe)


@every_target
def test_every_tensor_is_named(name: str, target: str, family: GetFamily, tmp_path: Path) -> None:
    models = family("mixtral")
    recipe = random_recipe(models)
    EXPORTERS[name]().export(recipe, models, tmp_path / target)
    merged = {disk for parameter in models.parameters for disk in models.disk_names(parameter)}
    assert set(read_back_names(name, tmp_path / target)) >= merged


def read_back_names(name: str, path: Path) -> list[str]:
    if name != "mergekit":
        return list(read_back(name, path))
    config = yaml.safe_load(path.read_text())
    return [rule["filter"] for rule in config["models"][0]["parameters"]["weight"] if "filter" in rule]


@every_target
def test_nothing_is_overwritten(name: str, target: str, family: GetFamily, tmp_path: Path) -> None:
    models = family("llama")
    EXPORTERS[name]().export(random_recipe(models, seed=1), models, tmp_path / target)
    before = contents(tmp_path / target)
    with pytest.raises(ExportError, match=r"not overwritten"):
        EXPORTERS[name]().export(random_recipe(models, seed=2), models, tmp_path / target)
    assert contents(tmp_path / target) == before


@every_target
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_refusing_disk_leaves_nothing(
    name: str, target: str, call: str, family: GetFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    models = family("llama")
    recipe = random_recipe(models)
    models.base.sha256()
    monkeypatch.setattr(os, call, refuse)
    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(RunError, match="disk is full"):
        EXPORTERS[name]().export(recipe, models, tmp_path / target)
    assert not any(tmp_path.iterdir())


@every_target
def test_the_same_recipe_gives_the_same_bytes(name: str, target: str, family: GetFamily, tmp_path: Path) -> None:
    models = family("llama")
    recipe = random_recipe(models)
    for folder in ("first", "second"):
        EXPORTERS[name]().export(recipe, models, tmp_path / folder / target)
    assert contents(tmp_path / "first" / target) == contents(tmp_path / "second" / target)


@every_target
def test_what_cannot_be_expressed_is_refused_before_anything_is_written(
    name: str, target: str, family: GetFamily, tmp_path: Path
) -> None:
    class Dynamic:
        static = False

        def __call__(self) -> Any:
            raise AssertionError("nobody may ask")

    recipe = random_recipe(family("llama"), coefficient_fn=Dynamic())
    exporter = EXPORTERS[name]()
    reason = exporter.can_express(recipe, family("llama"))
    assert reason is not None
    with pytest.raises(ExportError) as told:
        exporter.export(recipe, family("llama"), tmp_path / target)
    assert str(told.value) == reason
    assert not any(tmp_path.iterdir())
