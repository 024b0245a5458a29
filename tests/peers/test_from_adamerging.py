"""Coefficients in FusionBench's layout: `optmerge merge` of the recipe makes the model that FusionBench makes of them.

FusionBench adds the scaled task vectors one after the other, optmerge adds them up first: the last bits differ.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from optmerge.export.api import merge
from optmerge.importers.adamerging import recipe_from_adamerging
from tests.peers.conftest import FUSIONBENCH
from tests.tiny import save_family

pytestmark = pytest.mark.peers

MERGE = """
import sys
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from fusion_bench.models.wrappers.layer_wise_fusion import LayerWiseMergedModel
from fusion_bench.models.wrappers.task_wise_fusion import TaskWiseMergedModel
folder, *experts = sys.argv[1:]
for kind, wrapper, argument in (
    ("layer", LayerWiseMergedModel, "layer_wise_weight"), ("task", TaskWiseMergedModel, "task_wise_weight")
):
    models = [AutoModelForCausalLM.from_pretrained(f"{folder}/{name}") for name in ("base", *experts)]
    weight = torch.load(f"{folder}/{kind}.pt", weights_only=True)
    merged = wrapper(**{argument: weight}, pretrained_model=models[0], finetuned_models=models[1:]).merge_and_unload()
    save_file({name: p.detach().clone() for name, p in merged.named_parameters()}, f"{folder}/{kind}.safetensors")
"""


def test_both_kinds(run_in: Callable[[str], Callable[..., str]], tmp_path: Path) -> None:
    fusionbench = run_in(FUSIONBENCH)
    save_family("llama", tmp_path)
    generator = torch.Generator().manual_seed(0)
    weights = {"layer": torch.rand(2, 21, generator=generator), "task": torch.tensor([0.3, 0.6])}
    weights["layer"][1, 3] = 1.4  # both cut it to 1
    for kind, weight in weights.items():
        torch.save(weight, tmp_path / f"{kind}.pt")
    fusionbench("python", "-c", MERGE, tmp_path, "two", "one")
    experts = {"two": str(tmp_path / "two"), "one": str(tmp_path / "one")}
    for kind in weights:
        recipe = tmp_path / f"{kind}.yaml"
        made = recipe_from_adamerging(tmp_path / f"{kind}.pt", base=str(tmp_path / "base"), experts=experts, to=recipe)
        recipe.write_text(made.text)
        theirs = load_file(tmp_path / f"{kind}.safetensors")
        for name, value in merge(recipe).items():
            torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-5, msg=name)
