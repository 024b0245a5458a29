"""The mergekit config: its rules, which program it is for, and what is refused. The parity itself is in tests/peers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from optmerge.errors import ExportError
from optmerge.export import MergekitExporter
from optmerge.export.mergekit import choose_program, mergekit_config
from optmerge.export.mergekit_layouts import LAYOUTS
from optmerge.models.family import Family, open_family
from tests.export.families import open_with_adapter, opened, random_recipe, recipe_of, saved

GetFamily = Callable[[str], Family]


def config_of(family: Family, **changes: Any) -> dict[str, Any]:
    config = yaml.safe_load(mergekit_config(random_recipe(family, **changes), family))
    assert isinstance(config, dict)
    return config


def test_the_rules_that_make_it_exact(family: GetFamily) -> None:
    models = family("llama")
    config = config_of(models, dtype="bfloat16")
    assert config["merge_method"] == "task_arithmetic"
    assert config["base_model"] == str(models.base.folder)
    assert [model["model"] for model in config["models"]] == [str(c.folder) for c in models.experts.values()]
    assert config["parameters"] == {"normalize": False, "lambda": 1.0, "rescale": False}
    assert (config["dtype"], config["out_dtype"]) == ("float32", "bfloat16")
    for model in config["models"]:
        *rules, default = model["parameters"]["weight"]
        assert default == {"value": 0.0}
        lengths = [len(rule["filter"]) for rule in rules]
        assert lengths == sorted(lengths, reverse=True)
        assert {rule["filter"] for rule in rules} == set(models.base.tensors)


def test_small_floats_are_written_so_that_yaml_reads_floats(family: GetFamily) -> None:
    models = family("llama")
    table = np.full((len(models.parameters), 2), 1e-05)
    text = mergekit_config(recipe_of(models, table), models)
    assert "1.0e-05" in text
    assert yaml.safe_load(text)["models"][0]["parameters"]["weight"][0]["value"] == 1e-05


@pytest.mark.parametrize(
    ("kind", "program"),
    [
        ("llama", "mergekit-yaml"),
        ("llama-tied", "mergekit-yaml"),
        ("qwen2", "mergekit-yaml"),
        ("gpt2", "mergekit-yaml"),
        ("bert-merged", "mergekit-yaml"),
        ("vit", "mergekit-pytorch"),
        ("mixtral", "mergekit-pytorch"),
    ],
)
def test_the_program_is_chosen_by_architecture(kind: str, program: str, family: GetFamily) -> None:
    recipe = random_recipe(family(kind))
    assert choose_program(recipe, family(kind)).program == program
    text = mergekit_config(recipe, family(kind), file_name="mine.yml")
    assert f"# Run:  {program} mine.yml" in text


def test_files_are_named_for_mergekit_pytorch(family: GetFamily) -> None:
    config = config_of(family("vit"))
    assert config["base_model"] == str(family("vit").base.folder / "model.safetensors")


def test_an_architecture_with_other_tensors_is_not_given_to_mergekit_yaml() -> None:
    layout = LAYOUTS["LlamaForCausalLM"]
    names = layout.required(2)
    assert layout.misfit(names, 2) is None
    assert layout.misfit(names | {"lm_head.weight"}, 2) is None
    biased = names | {"model.layers.0.self_attn.q_proj.bias"}  # attention_bias=True
    assert "would drop the tensor model.layers.0.self_attn.q_proj.bias" in str(layout.misfit(biased, 2))
    assert "expects a tensor model.layers.2." in str(layout.misfit(names, 3))


def test_attention_biases_are_kept(tmp_path: Path) -> None:
    models = opened("llama", tmp_path, attention_bias=True)
    choice = choose_program(random_recipe(models), models)
    assert choice.program == "mergekit-pytorch"
    assert "bias" in choice.reason


def test_an_expert_that_is_the_base_is_left_out(tmp_path: Path) -> None:
    tiny = saved("llama", tmp_path)
    models = open_family(
        str(tiny.base), {"same": str(tiny.base), "one": str(tiny.experts["one"])}, relative_to=tmp_path
    )
    config = config_of(models)
    assert [Path(model["model"]).name for model in config["models"]] == ["one"]


def test_signs_that_mergekit_reads_otherwise_are_spelled_out(tmp_path: Path) -> None:
    models = opened("llama", tmp_path / "work@home")
    config = config_of(models)
    assert config["base_model"] == {"model": {"path": str(models.base.folder), "revision": None}}


def test_one_hot_groups_are_mentioned(family: GetFamily) -> None:
    models = family("llama")
    table = np.full((len(models.parameters), 2), 0.5)
    assert "last bit" not in mergekit_config(recipe_of(models, table), models)
    table[3] = [0.0, 1.0]
    assert "last bit" in mergekit_config(recipe_of(models, table), models)


def test_more_experts_than_torch_adds_in_order_are_mentioned(family: GetFamily, tmp_path: Path) -> None:
    assert "another order" not in mergekit_config(random_recipe(family("llama")), family("llama"))
    many = opened("llama", tmp_path, experts=tuple("abcde"))
    assert "more than 4 experts" in mergekit_config(random_recipe(many), many)


def test_the_tokenizer_that_mergekit_does_not_carry_is_mentioned(family: GetFamily) -> None:
    text = mergekit_config(random_recipe(family("llama"), tokenizer="two"), family("llama"))
    assert "this recipe's tokenizer is that of two: copy its files" in text


class TestAdapters:
    """base+adapter references, which mergekit-yaml merges itself."""

    @pytest.fixture
    def adapted(self, tmp_path: Path) -> Family:
        return open_with_adapter("llama", tmp_path)

    def test_they_are_carried_with_the_options_that_they_need(self, adapted: Family) -> None:
        text = mergekit_config(random_recipe(adapted), adapted)
        assert "--lora-merge-cache CACHE" in text
        assert "merges the adapters of two itself" in text
        assert yaml.safe_load(text)["models"][1]["model"] == f"{adapted.base.folder}+{adapted.base.folder.parent}/lora"

    def test_they_are_refused_where_only_mergekit_pytorch_could(self, tmp_path: Path) -> None:
        models = open_with_adapter("llama", tmp_path, attention_bias=True)
        assert "two is an adapter" in refusal(models, tmp_path)


def refusal(family: Family, tmp_path: Path, **changes: Any) -> str:
    with pytest.raises(ExportError) as told:
        MergekitExporter().export(random_recipe(family, **changes), family, tmp_path / "config.yml")
    assert not (tmp_path / "config.yml").exists()
    assert "--format checkpoint" in str(told.value)
    return str(told.value)


def test_whole_methods_are_refused(family: GetFamily, tmp_path: Path) -> None:
    assert "iso-c is the delta of a method" in refusal(family("llama"), tmp_path, method=True)


def test_own_heads_are_refused(family: GetFamily, tmp_path: Path) -> None:
    assert "a head of its own" in refusal(family("bert"), tmp_path)


def test_a_model_twice_is_refused(tmp_path: Path) -> None:
    tiny = saved("llama", tmp_path)
    one = str(tiny.experts["one"])
    models = open_family(str(tiny.base), {"one": one, "again": one}, relative_to=tmp_path)
    assert "one and again are the same model" in refusal(models, tmp_path)


def test_shards_of_an_unknown_architecture_are_refused(tmp_path: Path) -> None:
    from tests.tiny import add_noise, make_model

    for name, seed in {"base": 1, "one": 2}.items():
        add_noise(make_model("vit"), seed=seed).save_pretrained(tmp_path / name, max_shard_size="4KB")
    models = open_family(str(tmp_path / "base"), {"one": str(tmp_path / "one")}, relative_to=tmp_path)
    told = refusal(models, tmp_path)
    assert "ViTForImageClassification" in told
    assert "one file per model" in told


def test_another_suffix_is_refused(family: GetFamily, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"\.yml, \.yaml"):
        MergekitExporter().export(random_recipe(family("llama")), family("llama"), tmp_path / "config.json")


def test_paths_with_spaces_stay_whole(tmp_path: Path) -> None:
    folder = tmp_path / "my models"
    tiny = saved("llama", tmp_path / "plain")
    shutil.copytree(tmp_path / "plain", folder)
    models = open_family(str(folder / "base"), {n: str(folder / n) for n in tiny.experts}, relative_to=tmp_path)
    assert config_of(models)["base_model"] == str(folder / "base")
