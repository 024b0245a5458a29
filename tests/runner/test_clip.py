"""Searches over CLIP's vision towers, with heads made of class names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPModel

import optmerge
from optmerge.config.load import build_config
from optmerge.errors import ConfigError, DataError, ModelError
from optmerge.merging.recipe import Recipe
from optmerge.models.cache import cache_dir
from optmerge.records import Trajectory
from optmerge.runner.plan import make_plan
from optmerge.runner.problem import Problem, open_problem
from optmerge.runner.references import absolute_references
from optmerge.runner.search import Run, search
from tests.image_zoo import image_settings, make_image_zoo


@pytest.fixture(scope="module")
def clip_zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIP model, and two vision towers saved alone."""
    return make_image_zoo(tmp_path_factory.mktemp("clip"), "clip")


def clip_settings(zoo: Path, **changes: Any) -> dict[str, Any]:
    return image_settings(zoo, **{"heads": "zero-shot", **changes})


def searched(settings: dict[str, Any], root: Path) -> Run:
    return search(build_config(settings, root=root), root=root)


def opened(settings: dict[str, Any], root: Path) -> Problem:
    return open_problem(absolute_references(build_config(settings, root=root), root))


def values(run: Run, split: str) -> list[float]:
    records = Trajectory.read(run.folder).records
    return [r.value for r in records if r.phase in ("search", "select") and r.split == split and r.value is not None]


def test_expert_kl_falls_and_the_export_is_a_whole_clip_model(clip_zoo: Path, tmp_path: Path) -> None:
    space = {"granularity": "layer-wise", "start": 0.0}
    run = searched(clip_settings(clip_zoo, space=space, driver={"name": "adam", "lr": 0.02}), tmp_path)
    for split in ("fit", "select"):
        assert values(run, split)[-1] < 0.95 * values(run, split)[0]
    rows = {row["name"]: row for row in run.result["rows"]}
    assert rows["expert:b"]["report"]["b"]["agreement"] == 1.0
    assert "accuracy" in rows["expert:b"]["report"]["b"]
    assert json.loads((run.folder / "manifest.json").read_text())["heads"] == "zero-shot"
    merged = optmerge.merge(run.folder, tmp_path / "merged")
    assert "pipeline_tag: zero-shot-image-classification" in (merged / "README.md").read_text()
    model = CLIPModel.from_pretrained(merged)
    before, after = load_file(clip_zoo / "base" / "model.safetensors"), load_file(merged / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("vision_model.") for name in changed)
    problem = opened(clip_settings(clip_zoo), tmp_path)
    assert run.recipe is not None
    problem.engine.apply(problem.expand(problem.space.encode(run.recipe.coefficients)))
    (batch,) = problem.calibration.tasks["a"].splits["report"].batches(batch_tokens=10_000)
    tokenizer = AutoTokenizer.from_pretrained(merged)
    texts = [f"a photo of a {name}." for name in ("w10", "w20 w30", "w40")]
    with torch.no_grad():
        ours = problem.outputs("a", batch.to("cpu")).logits
        theirs = model(**tokenizer(texts, padding=True, return_tensors="pt"), **batch.to("cpu").inputs)
    torch.testing.assert_close(ours, theirs.logits_per_image)


def test_classes_and_templates_make_the_head(clip_zoo: Path, tmp_path: Path) -> None:
    """Tasks with the same expert and images and other classes are other tasks; names count, label values do not."""
    settings = clip_settings(clip_zoo)
    data = str(clip_zoo / "pictures-one")
    settings["tasks"] = {
        "folders": {"expert": "a", "data": data},
        "list": {"expert": "a", "data": data, "classes": ["w10", "w20 w30", "w40"]},
        "mapping": {"expert": "a", "data": data, "classes": {"w10": "w10", "w20_w30": "w5", "w40": "w6"}},
        "templates": {"expert": "a", "data": data, "templates": ["w1 {}", "w2 {} w5"]},
    }
    problem = opened(settings, tmp_path)
    (batch,) = problem.calibration.tasks["folders"].splits["report"].batches(batch_tokens=10_000)
    logits = {task: problem.outputs(task, batch.to("cpu")).logits for task in settings["tasks"]}
    assert torch.equal(logits["folders"], logits["list"])
    assert not torch.allclose(logits["folders"], logits["mapping"])
    assert not torch.allclose(logits["folders"], logits["templates"])
    keys = {task: problem.forward.head_sha256(task) for task in settings["tasks"]}
    assert len(set(keys.values())) == 3


def test_heads_are_made_once(clip_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(clip_settings(clip_zoo), tmp_path)
    assert len(list((cache_dir() / "zero-shot").iterdir())) == 1
    monkeypatch.setattr("optmerge.models.zero_shot.TextTower._read", lambda *_: pytest.fail("made again"))
    opened(clip_settings(clip_zoo), tmp_path)


def test_whole_models_as_experts_bring_their_projections(tmp_path: Path) -> None:
    zoo = make_image_zoo(tmp_path, "clip", whole=True)
    problem = opened(clip_settings(zoo), tmp_path)
    assert "visual_projection.weight" in problem.resident.parameters
    assert not any(name.startswith("text") for name in problem.family.parameters)


def test_a_base_without_text_takes_another_models(clip_zoo: Path, tmp_path: Path) -> None:
    model = CLIPModel.from_pretrained(clip_zoo / "base")
    from transformers import CLIPVisionModelWithProjection

    tower = CLIPVisionModelWithProjection(model.config.vision_config)
    tower.vision_model.load_state_dict(model.vision_model.state_dict())
    tower.visual_projection.load_state_dict(model.visual_projection.state_dict())
    tower.save_pretrained(tmp_path / "tower")
    processor = (clip_zoo / "base" / "preprocessor_config.json").read_bytes()
    (tmp_path / "tower" / "preprocessor_config.json").write_bytes(processor)
    settings = clip_settings(clip_zoo, base=str(tmp_path / "tower"))
    with pytest.raises(ModelError, match=r"has no text tower.*Set text_model"):
        opened(settings, tmp_path)
    whole, alone = (
        opened(clip_settings(clip_zoo), tmp_path),
        opened(settings | {"text_model": str(clip_zoo / "base")}, tmp_path),
    )
    (batch,) = whole.calibration.tasks["a"].splits["fit"].batches(batch_tokens=10_000)
    logits = [problem.outputs("a", batch.to("cpu")).logits for problem in (whole, alone)]
    assert torch.equal(logits[0], logits[1])


def test_what_cannot_be(clip_zoo: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="heads: zero-shot"):
        opened(clip_settings(clip_zoo, heads="auto"), tmp_path)
    heap = tmp_path / "heap"
    heap.mkdir()
    for file in (clip_zoo / "pictures-one").rglob("*.png"):
        (heap / file.name).write_bytes(file.read_bytes())
    settings = clip_settings(clip_zoo)
    settings["tasks"]["a"] = {"expert": "a", "data": str(heap)}
    with pytest.raises(ConfigError, match=r"tasks.a.classes: .* there are none"):
        opened(settings, tmp_path)
    settings["tasks"]["a"]["classes"] = ["cat", "cat"]
    with pytest.raises(ConfigError, match="has 'cat' twice"):
        opened(settings, tmp_path)
    settings["tasks"]["a"]["classes"] = {"0": "cat", "1": "dog", "2": "cat"}
    with pytest.raises(ConfigError, match="has 'cat' twice"):
        opened(settings, tmp_path)
    settings = clip_settings(clip_zoo)
    settings["tasks"]["a"]["classes"] = ["w10", "w40"]
    with pytest.raises(DataError, match="'w20_w30' is not among the zero-shot head: 'w10', 'w40'"):
        opened(settings, tmp_path)
    settings["tasks"]["a"] |= {"classes": ["cat", "dog"], "templates": ["a photo"]}
    with pytest.raises(ConfigError, match=r"has no \{\}"):
        build_config(settings, root=tmp_path)


def test_plan_knows_the_heads(clip_zoo: Path, tmp_path: Path) -> None:
    plan = make_plan(build_config(clip_settings(clip_zoo), root=tmp_path), root=tmp_path)
    assert plan.tokens["fit"] == 2 * 24 * 4
    assert not [warning for warning in plan.warnings if "could not be found out" in warning]


def test_a_recipe_says_what_it_merges(clip_zoo: Path, tmp_path: Path) -> None:
    run = searched(clip_settings(clip_zoo, budget={"evaluations": 1}), tmp_path)
    recipe = Recipe.load(run.folder / "recipe.yaml")
    assert recipe.heads == "zero-shot"
    assert all(name.startswith("vision_model.") for group in recipe.groups for name in group.tensors)
