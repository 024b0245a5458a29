"""Searches over image classifiers, on folders of images and on the digits that scikit-learn brings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

import optmerge
from optmerge.config.load import build_config
from optmerge.records import Trajectory
from optmerge.runner.plan import make_plan
from optmerge.runner.problem import open_problem
from optmerge.runner.references import absolute_references
from optmerge.runner.search import Run, search
from optmerge.tracking.report import render_report
from optmerge.tracking.view import RunView
from tests.image_zoo import CLASSES, OTHERS, image_settings, make_image_zoo
from tests.tiny import pictures, save_family
from tests.zoo import zoo_settings


@pytest.fixture(scope="module")
def image_zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classifiers whose heads name the same classes in different orders."""
    return make_image_zoo(tmp_path_factory.mktemp("vit"), "vit", own_heads=True)


def searched(settings: dict[str, Any], root: Path) -> Run:
    return search(build_config(settings, root=root), root=root)


def values(run: Run, split: str) -> list[float]:
    records = Trajectory.read(run.folder).records
    return [r.value for r in records if r.phase in ("search", "select") and r.split == split and r.value is not None]


def test_expert_kl_falls_and_the_export_says_the_same(image_zoo: Path, tmp_path: Path) -> None:
    run = searched(image_settings(image_zoo, driver={"name": "adam", "lr": 0.05}), tmp_path)
    for split in ("fit", "select"):
        assert values(run, split)[-1] < 0.9 * values(run, split)[0]
    rows = {row["name"]: row for row in run.result["rows"]}
    assert rows["expert:a"]["report"]["a"]["agreement"] == 1.0
    assert "accuracy" in rows["expert:a"]["report"]["a"]
    merged = optmerge.merge(run.folder, tmp_path / "merged")
    assert "AutoModelForImageClassification" in (merged / "README.md").read_text()
    assert "AutoModelForImageClassification" in render_report(RunView.open(run.folder))
    problem = open_problem(absolute_references(build_config(image_settings(image_zoo), root=tmp_path), tmp_path))
    assert run.recipe is not None
    problem.engine.apply(problem.expand(problem.space.encode(run.recipe.coefficients)))
    for task, folder in (("a", "a"), ("b", "b")):
        processor = AutoImageProcessor.from_pretrained(merged / folder, backend="pil")
        model = AutoModelForImageClassification.from_pretrained(merged / folder)
        (batch,) = problem.calibration.tasks[task].splits["report"].batches(batch_tokens=10_000)
        with torch.no_grad():
            ours = problem.outputs(task, batch.to("cpu")).logits
            theirs = model(batch.to("cpu").inputs["pixel_values"]).logits
        torch.testing.assert_close(ours, theirs)
    assert model.config.id2label[0] == OTHERS[0]
    assert processor.size["height"] == 8


def test_pixels_are_what_the_processor_of_the_base_makes(image_zoo: Path, tmp_path: Path) -> None:
    """In the order of the hashes, whatever the files are called; labels by the names of each expert's head."""
    problem = open_problem(absolute_references(build_config(image_settings(image_zoo), root=tmp_path), tmp_path))
    processor = AutoImageProcessor.from_pretrained(image_zoo / "base", backend="pil")
    wanted = torch.from_numpy(processor(images=pictures(72, seed=1), return_tensors="np")["pixel_values"])
    split = problem.calibration.tasks["b"].splits["report"]
    (batch,) = split.batches(batch_tokens=10_000)
    assert batch.inputs["pixel_values"].dtype == torch.uint8
    assert batch.tokens == split.tokens == 24 * 4
    moved = batch.to("cpu")
    assert moved.targets is not None
    found = []
    for image, target in zip(moved.inputs["pixel_values"], moved.targets.tolist(), strict=True):
        distances = (wanted - image).abs().amax((1, 2, 3))
        assert distances.min() < 1e-5
        place = int(distances.argmin())
        assert OTHERS[target] == CLASSES[place % 3]
        found.append(place)
    assert len(set(found)) == 24


def test_batches_keep_to_their_budget_of_patches(image_zoo: Path, tmp_path: Path) -> None:
    problem = open_problem(absolute_references(build_config(image_settings(image_zoo), root=tmp_path), tmp_path))
    split = problem.calibration.tasks["a"].splits["fit"]
    whole, cut = split.batches(batch_tokens=10_000), split.batches(batch_tokens=40)
    assert [batch.size for batch in cut] == [10, 10, 4]
    storage = whole[0].inputs["pixel_values"].untyped_storage().data_ptr()
    assert all(batch.inputs["pixel_values"].untyped_storage().data_ptr() == storage for batch in cut)
    some = split.batches(batch_tokens=10_000, positions=[5, 2])[0]
    assert some.positions.tolist() == [2, 5]
    assert torch.equal(some.inputs["pixel_values"], whole[0].inputs["pixel_values"][[2, 5]])


def test_labels_of_fit_and_select_are_never_seen(image_zoo: Path, tmp_path: Path) -> None:
    """Pictures in one heap, without a class, lead to the same coefficients."""
    heap = tmp_path / "heap"
    for name in ("one", "two"):
        (heap / name).mkdir(parents=True)
        for file in (image_zoo / f"pictures-{name}").rglob("*.png"):
            (heap / name / f"x{file.name}").write_bytes(file.read_bytes())
    labelled, settings = image_settings(image_zoo), image_settings(image_zoo)
    for task, name in (("a", "one"), ("b", "two")):
        settings["tasks"][task] = {"expert": task, "data": str(heap / name)}
    runs = [searched(chosen, tmp_path / str(number)) for number, chosen in enumerate((labelled, settings))]
    assert values(runs[0], "select") == values(runs[1], "select")
    assert "accuracy" not in runs[1].result["rows"][0]["report"]["a"]


def test_a_labelled_objective_reads_the_folders(image_zoo: Path, tmp_path: Path) -> None:
    settings = image_settings(image_zoo, objective={"terms": [{"name": "accuracy"}]}, driver={"name": "cma"})
    assert all(0 <= value <= 1 for value in values(searched(settings, tmp_path), "fit"))


def test_statistics_and_representatives_are_of_images_too(image_zoo: Path, tmp_path: Path) -> None:
    settings = image_settings(image_zoo, directions=["experts", "regmean"], budget={"evaluations": 2})
    for task in settings["tasks"].values():
        task["sampling"] = {"name": "diverse", "pool": 45}
    run = searched(settings, tmp_path)
    assert len(values(run, "fit")) == 2
    assert any("representatives" in note for note in json.loads((run.folder / "manifest.json").read_text())["notes"])


def test_plan_counts_patches_and_memory(image_zoo: Path, tmp_path: Path) -> None:
    plan = make_plan(build_config(image_settings(image_zoo), root=tmp_path), root=tmp_path)
    assert plan.tokens == {"fit": 2 * 24 * 4, "select": 2 * 16 * 4, "report": 2 * 24 * 4}
    assert plan.memory["gradients and activations"] > 0
    assert not [warning for warning in plan.warnings if "could not be found out" in warning]


def test_scikit_learns_digits_as_arrays(tmp_path: Path) -> None:
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    save_family("vit", tmp_path, scale=0.3, num_labels=10)
    half = len(digits.images) // 2
    for name, rows in (("one", slice(0, half)), ("two", slice(half, None))):
        with open(tmp_path / f"{name}.jsonl", "w", encoding="utf-8") as lines:
            for pixels, label in zip((digits.images[rows] * 15).astype(int), digits.target[rows], strict=True):
                lines.write(json.dumps({"image": pixels.tolist(), "label": int(label)}) + "\n")
    settings = zoo_settings(tmp_path, splits={"fit": 40, "select": 30, "report": 60})
    run = searched(settings, tmp_path / "work")
    assert run.result["best"]["select"] < values(run, "select")[0]
    assert {"accuracy", "agreement"} <= set(run.result["rows"][0]["report"]["a"])
