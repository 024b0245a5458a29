"""Searches over vision-language models, which are language models that can also be shown images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

import optmerge
from optmerge.config.load import build_config
from optmerge.records import Trajectory
from optmerge.runner.plan import make_plan
from optmerge.runner.problem import open_problem
from optmerge.runner.references import absolute_references
from optmerge.runner.search import search
from optmerge.tracking.report import render_report
from optmerge.tracking.view import RunView
from tests.zoo import make_zoo, zoo_settings

Settings = Callable[..., dict[str, Any]]
FROZEN = [{"match": "vision", "freeze": 0.0}, {"match": "connector", "freeze": 0.0}]


@pytest.fixture(scope="module")
def seeing_zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("llava"), "llava")


@pytest.fixture
def seeing_settings(seeing_zoo: Path) -> Settings:
    def make(**changes: Any) -> dict[str, Any]:
        made = zoo_settings(seeing_zoo, **changes)
        for task in made["tasks"].values():
            del task["label"]
        return made

    return make


def test_the_language_part_is_searched_and_the_rest_stays_the_bases(
    seeing_zoo: Path, seeing_settings: Settings, tmp_path: Path
) -> None:
    settings = seeing_settings(space={"granularity": "layer-wise", "rules": FROZEN})
    run = search(build_config(settings, root=tmp_path), root=tmp_path)
    records = [r for r in Trajectory.read(run.folder).records if r.phase in ("search", "select")]
    for split in ("fit", "select"):
        values = [record.value for record in records if record.split == split]
        assert values[-1] < values[0]
    merged = optmerge.merge(run.folder, tmp_path / "merged")
    assert "AutoModelForImageTextToText" in (merged / "README.md").read_text()
    assert "AutoModelForImageTextToText" in render_report(RunView.open(run.folder))
    base, after = load_file(seeing_zoo / "base" / "model.safetensors"), load_file(merged / "model.safetensors")
    assert base.keys() == after.keys()
    same = {name for name in base if torch.equal(base[name], after[name])}
    assert same == {name for name in base if "vision_tower" in name or "multi_modal_projector" in name}
    problem = open_problem(absolute_references(build_config(settings, root=tmp_path), tmp_path))
    assert run.recipe is not None
    problem.engine.apply(problem.expand(problem.space.encode(run.recipe.coefficients)))
    batch = problem.calibration.tasks["a"].splits["report"].batches(batch_tokens=10_000)[0]
    with torch.no_grad():
        ours = problem.outputs("a", batch).logits
        theirs = AutoModelForImageTextToText.from_pretrained(merged)(**batch.inputs).logits
    torch.testing.assert_close(ours, theirs)


def test_layers_are_the_language_models(seeing_settings: Settings, tmp_path: Path) -> None:
    problem = open_problem(absolute_references(build_config(seeing_settings(), root=tmp_path), tmp_path))
    assert problem.family.num_layers == 2
    names = [group.name for group in problem.space.groups]
    assert {"layer.0", "layer.1", "vision.layer.2", "vision.layer.3", "vision.embedding", "connector.other"} <= set(
        names
    )
    (batch,) = problem.calibration.tasks["a"].splits["fit"].batches(batch_tokens=10_000)
    hidden = problem.outputs("a", batch, layers=(0, 1)).hidden
    assert hidden[1].shape == (*batch.inputs["input_ids"].shape, 16)


def test_what_is_never_shown_has_no_gradient_and_is_told(
    seeing_settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = seeing_settings(budget={"evaluations": 2})
    plan = make_plan(build_config(settings, root=tmp_path), root=tmp_path)
    assert any("match: vision, freeze: 0" in warning for warning in plan.warnings)
    run = search(build_config(settings, root=tmp_path), root=tmp_path)
    assert "match: vision, freeze: 0" in caplog.text
    (first, *_) = [r for r in Trajectory.read(run.folder).records if r.phase == "search"]
    problem = open_problem(absolute_references(build_config(settings, root=tmp_path), tmp_path))
    blind = [name.startswith(("vision", "connector")) for name in problem.space.names.compact]
    assert any(blind)
    assert first.gradient is not None
    assert not first.gradient[blind].any()
    assert first.gradient[[not hidden for hidden in blind]].all()
    rules = [{"match": "vision", "freeze": 0.0}, {"match": "connector", "freeze": 0.0}]
    frozen = make_plan(build_config(settings | {"space": {"rules": rules}}, root=tmp_path), root=tmp_path)
    assert not any("match: vision" in warning for warning in frozen.warnings)
