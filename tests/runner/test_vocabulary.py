"""Experts with other vocabularies, from the search to the checkpoint: every part has the same rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from optmerge.config.load import build_config
from optmerge.errors import ExportError, ModelError
from optmerge.export.api import export, merge
from optmerge.merging.recipe import Recipe
from optmerge.runner.search import search
from tests.models.test_vocabulary import numbers_of, renumber, turned
from tests.zoo import make_zoo, zoo_settings


@pytest.fixture
def turned_zoo(tmp_path: Path) -> Callable[[str], Path]:
    """A zoo whose expert "one" has its words in another order and a token more."""

    def make(kind: str) -> Path:
        zoo = make_zoo(tmp_path / "zoo", kind)
        renumber(zoo / "one", turned(numbers_of(zoo / "base")) | {"<a>": 64}, rows=65)
        return zoo

    return make


def found(zoo: Path, output: Path, **changes: Any) -> tuple[Path, Recipe]:
    settings = zoo_settings(zoo, **{"budget": {"evaluations": 2}, "output": str(output)} | changes)
    run = search(build_config(settings, root=zoo), root=zoo)
    assert run.recipe is not None
    return run.folder, run.recipe


@pytest.mark.parametrize("kind", ["llama-tied", "bert"])
def test_a_search_and_its_merge_have_the_rows_of_common_tokens(
    kind: str, turned_zoo: Callable[[str], Path], tmp_path: Path
) -> None:
    zoo = turned_zoo(kind)
    folder, recipe = found(zoo, tmp_path / "run", vocabulary="common")
    assert Recipe.load(folder / "recipe.yaml").vocabulary == "common"
    merged = merge(folder)
    (name,) = (name for name in merged if name.endswith(("embed_tokens.weight", "word_embeddings.weight")))
    row = next(at for at, group in enumerate(recipe.groups) if name in group.tensors)
    base, one, two = (
        next(value for key, value in load_file(zoo / who / "model.safetensors").items() if key.endswith(name))
        for who in ("base", "one", "two")
    )
    ids = numbers_of(zoo / "base")
    straight = one[[turned(ids)[token] for token in sorted(ids, key=lambda token: ids[token])]]
    first, second = (float(value) for value in recipe.coefficients[row])
    assert first
    torch.testing.assert_close(merged[name], base + first * (straight - base) + second * (two - base))
    written = merge(folder, tmp_path / "merged")
    for config in written.rglob("config.json"):
        assert json.loads(config.read_text())["vocab_size"] == 64
    for weights in written.rglob("model*.safetensors"):
        for key, value in load_file(weights).items():
            if key.endswith(name):
                assert torch.equal(value, merged[name])


def test_what_was_trained_on_other_numbers_teaches_by_tokens(turned_zoo: Callable[[str], Path], tmp_path: Path) -> None:
    zoo = turned_zoo("llama-tied")
    plain = make_zoo(tmp_path / "plain", "llama-tied")  # the same models before one was renumbered
    values: list[list[float]] = []
    for place, changes in ((zoo, {"vocabulary": "common"}), (plain, {})):
        folder, _ = found(place, tmp_path / f"run-{len(values)}", **changes)
        lines = (folder / "trajectory.jsonl").read_text().splitlines()
        judged = [record for record in map(json.loads, lines) if record["split"] != "report"]
        values.append([record["value"] for record in judged])
    assert len(values[0]) > 10
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_without_a_policy_nothing_runs(turned_zoo: Callable[[str], Path], tmp_path: Path) -> None:
    zoo = turned_zoo("llama-tied")
    with pytest.raises(
        ModelError, match=r"65 rows against the base's 64, 1 token added \('<a>' at 64\), 58 tokens moved"
    ):
        found(zoo, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"optmerge_recipe: 1\nbase: {zoo / 'base'}\nexperts: {{a: {zoo / 'one'}}}\ncoefficients: {{a: 0.5}}\n"
    )
    with pytest.raises(ModelError, match="vocabulary: common"):
        merge(recipe)
    with recipe.open("a") as file:
        file.write("vocabulary: common\ntokenizer: a\n")
    with pytest.raises(ModelError, match="tokenizer is 'a', whose tokens are numbered otherwise"):
        merge(recipe, tmp_path / "merged")
    with pytest.raises(ExportError, match="vocabulary of a is brought into the base's first"):
        export(recipe, "mergekit", tmp_path / "config.yml")
