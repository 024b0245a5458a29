"""Exported checkpoints load with transformers, hold exactly the merged tensors, and score as the resident model."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from optmerge.errors import ExportError, ModelError, RunError
from optmerge.export import CheckpointExporter
from optmerge.export import checkpoint as checkpoint_module
from optmerge.export.api import export, merge
from optmerge.export.background import BackgroundWriter
from optmerge.merging.deltas import Deltas
from optmerge.merging.engine import Engine
from optmerge.merging.merge import rows_of_parameters
from optmerge.merging.recipe import Recipe
from optmerge.models.family import Family
from optmerge.models.resident import ResidentModel
from tests.export.families import opened, random_recipe
from tests.export.oracle import merged_values, tensors_on_disk

GetFamily = Callable[[str], Family]

AUTO = {"vit": AutoModelForImageClassification, "bert-merged": AutoModelForSequenceClassification}


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint folder, checked against its index if it has one."""
    files = sorted(folder.glob("*.safetensors"))
    found = {name: (file.name, tensor) for file in files for name, tensor in load_file(file).items()}
    index = folder / "model.safetensors.index.json"
    assert index.exists() == (len(files) > 1)
    if index.exists():
        body = json.loads(index.read_text())
        assert body["weight_map"] == {name: file for name, (file, _) in found.items()}
        assert body["metadata"]["total_size"] == sum(tensor.nbytes for _, tensor in found.values())
    return {name: tensor for name, (_, tensor) in found.items()}


def inputs_for(kind: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    if kind == "vit":
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=generator)}
    return {"input_ids": torch.randint(6, 60, (2, 7), generator=generator)}


def resident_logits(recipe: Recipe, family: Family, expert: str, kind: str) -> torch.Tensor:
    """Logits of the resident model with the recipe applied by the engine."""
    resident = ResidentModel(family, device=torch.device("cpu"), dtype=torch.float32)
    deltas = Deltas(family, recipe.directions, cache=None)
    rows = rows_of_parameters(recipe, family)
    engine = Engine(resident.parameters, deltas.segments, rows.first, cuts=rows.cuts)
    engine.apply(recipe.coefficients)
    with torch.no_grad():
        logits: torch.Tensor = resident.model_for(expert)(**inputs_for(kind)).logits
    return logits


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "qwen2", "gpt2", "mixtral", "vit", "bert-merged"])
def test_resident_merged_folder_and_export_agree(kind: str, family: GetFamily, tmp_path: Path) -> None:
    models = family(kind)
    recipe = random_recipe(models)
    expected = resident_logits(recipe, models, "one", kind)
    recipe.save(tmp_path / "recipe.yaml")
    folder = merge(tmp_path / "recipe.yaml", tmp_path / "merged")
    again = CheckpointExporter(shard_bytes=3000).export(recipe, models, tmp_path / "exported")
    tensors = merge(recipe)
    for path in (folder, again):
        on_disk = tensors_of(path)
        assert set(on_disk) == set(tensors) == set(models.base.tensors)
        assert all(torch.equal(on_disk[name], tensors[name]) for name in tensors)
        model, told = AUTO.get(kind, AutoModelForCausalLM).from_pretrained(path, output_loading_info=True)
        assert not any(told.values()), told
        with torch.no_grad():
            assert torch.equal(model.eval()(**inputs_for(kind)).logits, expected)
    assert len(list(again.glob("model-*.safetensors"))) > 1


@pytest.mark.parametrize("kind", ["mixtral", "vit", "llama"])
def test_what_is_written_reads_back_bit_for_bit(kind: str, family: GetFamily, tmp_path: Path) -> None:
    from optmerge.models.checkpoint import open_checkpoint

    models = family(kind)
    recipe = random_recipe(models)
    CheckpointExporter().export(recipe, models, tmp_path / "merged")
    written = open_checkpoint(str(tmp_path / "merged"))
    for parameter, merged in merged_values(recipe, models).items():
        assert torch.equal(models.maps["base"].read(written, parameter), merged), parameter


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_one_cast_is_to_the_recipes_dtype(dtype: str, family: GetFamily, tmp_path: Path) -> None:
    models = family("llama")
    recipe = random_recipe(models, dtype=dtype)
    folder = CheckpointExporter().export(recipe, models, tmp_path / "merged")
    wanted = tensors_on_disk(recipe, models)
    assert all(torch.equal(wanted[name], value) for name, value in tensors_of(folder).items())
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == getattr(torch, dtype)


def test_companions_come_from_the_recipes_tokenizer(family: GetFamily, tmp_path: Path) -> None:
    models = family("llama")
    template = models.experts["two"].folder / "chat_template.jinja"
    template.write_text("{{ messages[0].content }}!")
    try:
        folder = CheckpointExporter().export(random_recipe(models, tokenizer="two"), models, tmp_path / "merged")
    finally:
        template.unlink()
    assert (folder / "chat_template.jinja").read_text() == "{{ messages[0].content }}!"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "w1"}], tokenize=False) == "w1!"
    assert (folder / "generation_config.json").exists()
    assert Recipe.load(folder / "recipe.yaml").tokenizer == "two"


def test_the_recipe_inside_makes_the_same_model_from_anywhere(
    family: GetFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = random_recipe(family("llama"))
    first = CheckpointExporter().export(recipe, family("llama"), tmp_path / "first")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    second = merge(first / "recipe.yaml", tmp_path / "second")
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


class TestOwnHeads:
    """A body once, and one folder per expert."""

    @pytest.fixture
    def merged(self, family: GetFamily, tmp_path: Path) -> Path:
        models = family("bert")
        return CheckpointExporter(shard_bytes=8000).export(random_recipe(models), models, tmp_path / "merged")

    @pytest.mark.parametrize("expert", ["one", "two"])
    def test_each_expert_loads_with_its_head(self, expert: str, merged: Path, family: GetFamily) -> None:
        models = family("bert")
        model, told = AutoModelForSequenceClassification.from_pretrained(merged / expert, output_loading_info=True)
        assert not any(told.values()), told
        assert model.config.id2label == models.configs[expert].id2label
        expected = resident_logits(random_recipe(models), models, expert, "bert")
        with torch.no_grad():
            assert torch.equal(model.eval()(**inputs_for("bert")).logits, expected)
        assert AutoTokenizer.from_pretrained(merged / expert)("w1 w2")["input_ids"][0] == 2

    def test_the_body_loads_alone(self, merged: Path, family: GetFamily) -> None:
        models = family("bert")
        body, told = AutoModel.from_pretrained(merged / "body", output_loading_info=True)
        assert not any(told.values()), told
        assert type(body).__name__ == json.loads((merged / "body" / "config.json").read_text())["architectures"][0]
        values = merged_values(random_recipe(models), models)
        shortened = {name.removeprefix("bert."): value for name, value in values.items()}
        for name, value in body.named_parameters():
            assert torch.equal(shortened[name], value), name

    def test_the_body_is_stored_once(self, merged: Path) -> None:
        body = sorted((merged / "body").glob("*.safetensors"))
        for expert in ("one", "two"):
            tensors_of(merged / expert)
            files = sorted((merged / expert).glob("*.safetensors"))
            assert [os.path.samefile(a, b) for a, b in zip(files, body, strict=False)] == [True] * len(body)
            assert len(files) == len(body) + 1

    def test_tensors_alone_are_the_bodys(self, family: GetFamily) -> None:
        models = family("bert")
        tensors = merge(random_recipe(models))
        assert set(tensors) == {disk for name in models.parameters for disk in models.disk_names(name)}

    def test_a_disk_without_hard_links_gets_copies(
        self, family: GetFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: Any) -> None:
            raise OSError("no hard links here")

        monkeypatch.setattr(Path, "hardlink_to", refuse)
        folder = CheckpointExporter().export(random_recipe(family("bert")), family("bert"), tmp_path / "merged")
        assert AutoModelForSequenceClassification.from_pretrained(folder / "two").num_labels == 3

    def test_an_expert_named_like_the_body_is_refused(self, family: GetFamily, tmp_path: Path) -> None:
        recipe = random_recipe(family("bert"))
        odd = {"body": recipe.experts["one"]}
        reason = CheckpointExporter().can_express(random_recipe(family("bert"), experts=odd), family("bert"))
        assert "'body' cannot be the name of its folder" in str(reason)


def test_progress_counts_bytes(family: GetFamily, tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    models = family("bert")
    folder = CheckpointExporter().export(
        random_recipe(models), models, tmp_path / "merged", progress=lambda *facts: told.append(facts)
    )
    done = [facts[1] for facts in told]
    assert done == sorted(done)
    assert told[-1][1] == told[-1][2]
    inodes = {file.stat().st_ino: file.stat().st_size for file in folder.rglob("*.safetensors")}
    assert sum(inodes.values()) > told[-1][1] > 0.5 * sum(inodes.values())


def test_too_little_space_is_told_before_any_work(
    family: GetFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(checkpoint_module.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(RunError, match=r"0\.00 GB free"):
        CheckpointExporter().export(random_recipe(family("llama")), family("llama"), tmp_path / "merged")
    assert not any(tmp_path.iterdir())


def test_a_file_in_the_way_is_refused(family: GetFamily, tmp_path: Path) -> None:
    (tmp_path / "merged").write_text("mine")
    with pytest.raises(ExportError, match="is a file"):
        CheckpointExporter().export(random_recipe(family("llama")), family("llama"), tmp_path / "merged")


def test_an_unknown_format_gets_its_near_match(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="Did you mean 'checkpoint'"):
        export(tmp_path, "chekpoint", tmp_path / "x")


@pytest.mark.parametrize("survives", [0, 2000])
def test_a_disk_that_fills_up_is_told_and_leaves_nothing(
    survives: int, family: GetFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0
    put = BackgroundWriter._put

    def filling(self: BackgroundWriter, values: bytes | memoryview) -> None:
        nonlocal written
        written += len(values)
        if written > survives:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        put(self, values)

    monkeypatch.setattr(BackgroundWriter, "_put", filling)
    models = family("llama")
    with pytest.raises(RunError, match=r"the disk is full\. Free some space") as told:
        CheckpointExporter(shard_bytes=1000).export(random_recipe(models), models, tmp_path / "merged")
    assert str(tmp_path / "merged") in str(told.value)
    assert not any(tmp_path.iterdir())


def test_a_file_cut_short_after_it_was_opened_is_told_before_any_work(tmp_path: Path) -> None:
    models = opened("llama", tmp_path / "models")
    recipe = random_recipe(models)
    path = models.experts["two"].folder / "model.safetensors"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(ModelError, match=r"two/model\.safetensors is truncated"):
        CheckpointExporter().export(recipe, models, tmp_path / "merged")
    assert [entry.name for entry in tmp_path.iterdir()] == ["models"]


def test_a_taken_folder_is_refused_before_any_model_is_opened(tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "mine").touch()
    (tmp_path / "recipe.yaml").write_text("optmerge_recipe: 1\nbase: nowhere\nexperts: {a: no}\ncoefficients: {a: 1}\n")
    with pytest.raises(ExportError, match="is not empty"):
        merge(tmp_path / "recipe.yaml", tmp_path / "merged")


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_short_recipe_is_completed_by_its_models(kind: str, tmp_path: Path) -> None:
    models = opened(kind, tmp_path / "models", dtype=torch.bfloat16)
    text = "optmerge_recipe: 1\nbase: models/base\nexperts: {one: models/one, two: models/two}\n"
    (tmp_path / "recipe.yaml").write_text(text + "coefficients: {one: 0.5, two: 0.25}\n")
    folder = merge(tmp_path / "recipe.yaml", tmp_path / "merged")
    kept = Recipe.load(folder / "recipe.yaml")
    assert (kept.heads, kept.dtype, kept.base.sha256) == (models.heads, "bfloat16", models.base.sha256())
    assert "*" not in kept.groups[0].tensors
    expected = tensors_on_disk(kept, models, "base" if kind == "llama" else "one")
    found = tensors_of(folder if kind == "llama" else folder / "body")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
