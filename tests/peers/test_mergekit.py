"""mergekit, run on our exported configs, makes every tensor bit-identical to ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from optmerge.export import MergekitExporter
from optmerge.export.api import merge
from optmerge.export.mergekit import IN_ORDER, choose_program
from optmerge.export.mergekit_layouts import LAYOUTS
from tests.export.families import open_with_adapter, opened, random_recipe

pytestmark = pytest.mark.peers

Peer = Callable[..., str]

LAYOUT_OF_MERGEKIT = """
import json, sys
from mergekit.architecture.json_definitions import NAME_TO_ARCH
layouts = {}
for name in sys.argv[1:]:
    (architecture,) = NAME_TO_ARCH[name]
    ((_, module),) = architecture.modules.items()
    definition = module.architecture.definition
    outside = definition.pre_weights + definition.post_weights
    layouts[name] = {
        "layers": sorted(w.name.replace("${layer_index}", "{}") for w in definition.layer_templates.weights),
        "outside": sorted(w.name for w in outside if not w.optional),
        "optional": sorted(w.name for w in outside if w.optional),
    }
print(json.dumps(layouts))
"""


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize(
    ("kind", "program", "dtype"),
    [
        ("bert-merged", "mergekit-yaml", "float32"),
        ("llama", "mergekit-yaml", "float32"),
        ("llama", "mergekit-yaml", "bfloat16"),
        ("llama-tied", "mergekit-yaml", "float32"),
        ("qwen2", "mergekit-yaml", "float32"),
        ("gpt2", "mergekit-yaml", "float32"),
        ("vit", "mergekit-pytorch", "float32"),
        ("vit", "mergekit-pytorch", "bfloat16"),
        ("mixtral", "mergekit-pytorch", "float32"),
    ],
)
def test_every_tensor_is_bit_identical(kind: str, program: str, dtype: str, peer: Peer, tmp_path: Path) -> None:
    experts = ("one", "two", "three") if kind in ("llama", "vit") else ("one", "two")
    family = opened(kind, tmp_path / "models", experts=experts)
    recipe = random_recipe(family, seed=7, dtype=dtype)
    assert (recipe.coefficients < 0).any()
    assert choose_program(recipe, family).program == program
    config = MergekitExporter().export(recipe, family, tmp_path / "config.yml")
    peer(program, config, tmp_path / "theirs")
    theirs = tensors_of(tmp_path / "theirs")
    ours = merge(recipe)
    assert set(theirs) == set(ours)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert all(theirs[name].dtype == getattr(torch, dtype) for name in theirs)


@pytest.mark.parametrize("count", [4, 9])
def test_many_experts(count: int, peer: Peer, tmp_path: Path) -> None:
    family = opened("llama", tmp_path / "models", experts=tuple(f"e{index}" for index in range(count)))
    recipe = random_recipe(family, seed=1)
    peer("mergekit-yaml", MergekitExporter().export(recipe, family, tmp_path / "config.yml"), tmp_path / "theirs")
    theirs = tensors_of(tmp_path / "theirs")
    for name, ours in merge(recipe).items():
        if count <= IN_ORDER:
            assert torch.equal(ours, theirs[name]), name
        else:
            torch.testing.assert_close(ours, theirs[name], rtol=1e-6, atol=1e-6)


def test_folders_with_signs_that_mergekit_reads_otherwise(peer: Peer, tmp_path: Path) -> None:
    family = opened("qwen2", tmp_path / "a@b+c")
    recipe = random_recipe(family, seed=2)
    peer("mergekit-yaml", MergekitExporter().export(recipe, family, tmp_path / "config.yml"), tmp_path / "theirs")
    theirs = tensors_of(tmp_path / "theirs")
    assert all(torch.equal(value, theirs[name]) for name, value in merge(recipe).items())


def test_adapters(peer: Peer, tmp_path: Path) -> None:
    family = open_with_adapter("llama", tmp_path / "models")
    recipe = random_recipe(family, seed=3)
    config = MergekitExporter().export(recipe, family, tmp_path / "config.yml")
    options = ["--lora-merge-cache", tmp_path / "adapters", "--lora-merge-dtype", "float32"]
    peer("mergekit-yaml", config, tmp_path / "theirs", *options)
    theirs = tensors_of(tmp_path / "theirs")
    for name, ours in merge(recipe).items():
        torch.testing.assert_close(ours, theirs[name], rtol=1e-6, atol=1e-6)


def test_our_layouts_are_mergekits(peer: Peer) -> None:
    theirs = json.loads(peer("python", "-c", LAYOUT_OF_MERGEKIT, *LAYOUTS))
    for name, layout in LAYOUTS.items():
        ours = {
            "layers": sorted(layout.layer + part for part in layout.in_layer),
            "outside": sorted(layout.outside),
            "optional": sorted(layout.optional),
        }
        assert theirs[name] == ours, name
