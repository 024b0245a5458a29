"""``optmerge merge``: from a recipe written by hand to a folder, and what is refused."""

from __future__ import annotations

import gc
import hashlib
import json
import re
from pathlib import Path

import pytest

from optmerge.merging.recipe import Recipe
from tests.cli.conftest import Run
from tests.tiny import save_family

DOCS = Path(__file__).resolve().parents[2] / "docs" / "recipes.md"
RECIPE = """
optmerge_recipe: 1
base: base
experts: {one: one, two: two}
coefficients: {one: 0.5, two: 0.25}
"""


@pytest.fixture
def recipe(folder: Path) -> Path:
    save_family("llama", folder)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder / "recipe.yaml"


def test_verified_merge_prints_the_hash_of_every_file(run: Run, recipe: Path) -> None:
    result = run("merge", recipe, "--to", "merged", "--verify")
    assert result.code == 0, result.err
    files = {path.name: path for path in Path("merged").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "recipe.yaml", "README.md"} <= files.keys()
    for name, path in files.items():
        assert re.search(rf"^{name} +{hashlib.sha256(path.read_bytes()).hexdigest()}$", result.out, re.MULTILINE)
    assert "in float32" in result.out
    assert gc.isenabled()


def test_json_facts(run: Run, recipe: Path) -> None:
    plain = json.loads(run("merge", recipe, "--to", "a", "--json").out)
    assert plain["sha256"] is None
    checked = json.loads(run("merge", recipe, "--to", "b", "--json", "--verify", "--dtype", "bfloat16").out)
    assert checked["dtype"] == "bfloat16"
    assert checked["nbytes"] * 2 == plain["nbytes"]
    wide = json.loads(run("merge", recipe, "--to", "c", "--json", "--dtype", "float64").out)
    assert (wide["dtype"], wide["nbytes"]) == ("float64", plain["nbytes"] * 2)
    weights = Path("b", "model.safetensors").read_bytes()
    assert checked["sha256"]["model.safetensors"] == hashlib.sha256(weights).hexdigest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("two: 0.25", "tow: 0.25"), "has a coefficient of 'tow'; the directions are one, two. Did you mean 'two'?"),
        (("two: two", "two: tow"), "tow"),
        (("coefficients:", "tokenizer: three\ncoefficients:"), "tokenizer is 'three'; expected one of base, one, two"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(
    run: Run, recipe: Path, change: tuple[str, str], message: str
) -> None:
    recipe.write_text(RECIPE.replace(*change))
    result = run("merge", recipe, "--to", "merged")
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err
    assert not [path for path in Path().iterdir() if "merged" in path.name]


def test_every_recipe_in_the_documentation_is_one() -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```$", DOCS.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    for block in blocks:
        made = Recipe.from_yaml(block)
        assert Recipe.from_yaml(made.to_yaml()).to_yaml() == made.to_yaml()
