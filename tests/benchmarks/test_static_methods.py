"""Methods that are timed: our recipes are valid, mergekit is asked for the same, and what is missing is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from benchmarks.memory import Measured
from benchmarks.merge import Turns
from benchmarks.random_models import write_family
from benchmarks.static_methods import OURS, THEIRS, our_recipe, registered, their_config
from optmerge.config.methods import METHOD_CONFIGS
from optmerge.merging.merge import Merge
from optmerge.merging.recipe import Recipe, open_recipe


@pytest.mark.parametrize("method", [method for method in OURS if method in METHOD_CONFIGS])
def test_our_recipes_can_be_merged_and_mergekit_has_what_is_said(method: str, tmp_path: Path) -> None:
    family = write_family(tmp_path, "llama-tiny", experts=3, dtype=torch.bfloat16)
    text = yaml.safe_dump(our_recipe(method, family))
    recipe = Recipe.from_yaml(text)
    merge = Merge(recipe, open_recipe(recipe))
    name = "model.layers.0.self_attn.q_proj.weight"
    (segment,) = merge.segments(name)
    merged = torch.empty(segment.base.shape, dtype=torch.bfloat16)
    merge.write(merged, name, segment)
    assert torch.isfinite(merged).all()
    assert not torch.equal(merged, segment.base)
    theirs = their_config(method, family)
    assert (theirs is not None) == (method in THEIRS)
    if theirs is not None:
        assert theirs["merge_method"] == METHOD_CONFIGS[method].facts.mergekit
        assert [model["model"] for model in theirs["models"]] == [str(folder) for folder in family.experts.values()]


def test_methods_that_are_not_there_are_left_out_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert registered({"ties": {}, "unheard-of": {}}) == ["ties"]
    assert "unheard-of is left out" in capsys.readouterr().err


def test_ratios_are_of_mergekit_to_ours() -> None:
    first = Measured(9.0, 5.0, 0, "")
    both = Turns(
        {"ours": 2.0, "mergekit": 8.0}, {"ours": 1.5, "mergekit": 9.0}, {"ours": 2**20, "mergekit": 6 * 2**20}, first
    )
    assert both.cells() == ["2.0 s", "8.0 s", "4.0x", "1 MiB", "6 MiB", "6.0x"]
    assert both.processor_cells() == ["1.5 s", "9.0 s", "6.0x"]
    alone = Turns({"ours": 2.0}, {"ours": 1.5}, {"ours": 2**20}, first)
    assert alone.cells() == ["2.0 s", "-", "-", "1 MiB", "-", "-"]
    assert alone.processor_cells() == ["1.5 s", "-", "-"]
