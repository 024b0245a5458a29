"""CLIP's vision towers in families, whatever the checkpoints hold beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPModel, CLIPVisionModelWithProjection

from optmerge.errors import ModelError
from optmerge.models.family import Family, open_family
from optmerge.models.vision_tower import PROJECTION
from tests.tiny import TinyFamily, save_clip, save_family


def opened(made: TinyFamily, *, base: Path | None = None) -> Family:
    experts = {name: str(folder) for name, folder in made.experts.items()}
    return open_family(str(base or made.base), experts, relative_to=Path(), heads="zero-shot")


@pytest.mark.parametrize("towers", [True, False])
def test_values_are_those_of_the_tower(tmp_path: Path, towers: bool) -> None:
    made = save_clip(tmp_path, towers=towers)
    family = opened(made)
    assert family.kind == "zero-shot-image-classification"
    assert family.heads == "zero-shot"
    assert family.num_layers == 1
    assert family.head_parameters == ()
    assert (PROJECTION in family.parameters) is not towers
    whole = dict(CLIPModel.from_pretrained(made.base).named_parameters())
    for name in family.parameters:
        assert torch.equal(family.read("base", name), whole[name])
        assert not torch.equal(family.read("one", name), whole[name])
        assert family.disk_names(name) == (name,)


def test_the_remembered_layout_is_the_same(tmp_path: Path) -> None:
    made = save_clip(tmp_path)
    first, again = opened(made), opened(made)
    assert first.parameters == again.parameters
    assert (first.kind, first.heads, first.num_layers) == (again.kind, again.heads, again.num_layers)


def test_a_tower_with_its_projection_can_be_the_base(tmp_path: Path) -> None:
    made = save_clip(tmp_path)
    model = CLIPModel.from_pretrained(made.base)
    tower = CLIPVisionModelWithProjection(model.config.vision_config)
    tower.vision_model.load_state_dict(model.vision_model.state_dict())
    tower.save_pretrained(tmp_path / "tower")
    assert opened(made, base=tmp_path / "tower").parameters.keys() == opened(made).parameters.keys()


def test_a_base_without_a_projection(tmp_path: Path) -> None:
    made = save_clip(tmp_path)
    with pytest.raises(ModelError, match=r"one has no visual_projection.weight.*Name the whole CLIP model"):
        opened(made, base=made.experts["one"])


def test_other_models(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"takes CLIP models .*base is a vit model. Use heads: auto"):
        opened(save_family("vit", tmp_path))


def test_whole_models_are_merged_whole_unless_zero_shot_is_asked_for(tmp_path: Path) -> None:
    made = save_clip(tmp_path, towers=False)
    experts = {name: str(folder) for name, folder in made.experts.items()}
    family = open_family(str(made.base), experts, relative_to=Path())
    assert (family.kind, family.heads) == ("other", "merged")
    assert any(name.startswith("text_model.") for name in family.parameters)


def test_towers_with_a_whole_base_need_to_be_told(tmp_path: Path) -> None:
    made = save_clip(tmp_path)
    with pytest.raises(ModelError, match="set heads: zero-shot"):
        open_family(str(made.base), {"one": str(made.experts["one"])}, relative_to=Path())
