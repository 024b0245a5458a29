"""The table of coefficients as a stranger reads it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from optmerge.errors import ExportError, RecipeError
from optmerge.export import CoefficientsExporter
from optmerge.export.coefficients import read_coefficients
from optmerge.models.family import Family
from tests.export.families import random_recipe

GetFamily = Callable[[str], Family]


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json"])
def test_models_are_named_with_their_hashes(suffix: str, family: GetFamily, tmp_path: Path) -> None:
    recipe = random_recipe(family("llama"), method=True)
    path = CoefficientsExporter().export(recipe, None, tmp_path / f"table{suffix}")
    body = json.loads(path.read_text()) if suffix == ".json" else yaml.safe_load(path.read_text())
    assert body["base"]["sha256"] == family("llama").base.sha256()
    assert body["experts"]["two"]["sha256"] == family("llama").experts["two"].sha256()
    assert body["directions"]["one"] == {"expert": "one"}
    assert body["directions"]["iso-c"]["method"]["name"] == "iso-c"
    assert list(body["coefficients"]["model.norm.weight"]) == ["one", "two", "iso-c"]


def test_csv_is_in_long_form(family: GetFamily, tmp_path: Path) -> None:
    models = family("llama")
    recipe = random_recipe(models, method=True)
    path = CoefficientsExporter().export(recipe, None, tmp_path / "table.csv")
    with open(path, newline="") as handle:
        lines = list(csv.DictReader(handle))
    assert len(lines) == 3 * sum(len(group.tensors) for group in recipe.groups)
    line = next(line for line in lines if line["tensor"].endswith("layers.1.self_attn.q_proj.weight"))
    assert (line["direction"], line["layer"], line["kind"]) == ("one", "1", "attention")
    assert line["sha256"] == models.experts["one"].sha256()
    assert {line["sha256"] for line in lines if line["direction"] == "iso-c"} == {""}


def test_an_unknown_suffix_is_refused(family: GetFamily, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"\.yaml, \.yml, \.json, \.csv"):
        CoefficientsExporter().export(random_recipe(family("llama")), None, tmp_path / "table.txt")


@pytest.mark.parametrize(
    ("name", "text"), [("x.yaml", "a: 1"), ("x.json", "{"), ("x.csv", "a,b\n1,2\n"), ("x.yaml", "[1, 2")]
)
def test_what_is_no_table_is_told(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(RecipeError, match="is not a coefficient table"):
        read_coefficients(tmp_path / name)
    with pytest.raises(RecipeError, match="There is no"):
        read_coefficients(tmp_path / "absent.csv")
