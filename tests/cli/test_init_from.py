"""``optmerge init --from-...``: files of other tools, and a merge and a search that go on from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from tests.cli.conftest import Run
from tests.tiny import WORDS, save_family

MERGE = """
merge_method: ties
base_model: base
models:
  - {model: one, parameters: {weight: [0.2, 0.8], density: 0.5}}
  - {model: two, parameters: {weight: 0.5, density: 0.5}}
parameters: {int8_mask: true}
dtype: float32
"""
EVOLVE = """
genome:
  models: [one, two]
  merge_method: task_arithmetic
  base_model: base
  layer_granularity: 1
tasks: [my_task]
"""


@pytest.fixture
def models(folder: Path) -> Path:
    save_family("llama", folder)
    (folder / "merge.yml").write_text(MERGE)
    (folder / "evolve.yml").write_text(EVOLVE)
    return folder


def test_a_recipe_that_merges(run: Run, models: Path) -> None:
    result = run("init", "--from-mergekit", "merge.yml", "--to", "recipes/ours.yaml")
    assert result.code == 0, result.err
    assert "  parameters.int8_mask: it saves memory in mergekit and changes no number" in result.out
    assert "Next: optmerge merge recipes/ours.yaml --to merged" in result.out
    assert run("merge", "recipes/ours.yaml", "--to", "merged").code == 0
    again = run("init", "--from-mergekit", "merge.yml", "recipes/ours.yaml")
    assert again.code == 2
    assert "recipes/ours.yaml exists and is not overwritten" in again.err


def test_a_search_that_runs(run: Run, models: Path) -> None:
    result = run("init", "--from-mergekit-evolve", "evolve.yml", "--json")
    assert result.code == 0, result.err
    facts = json.loads(result.out)
    assert facts["file"] == "search.yaml"
    assert "genome.layer_granularity" in facts["carried"]
    refused = run("validate", "search.yaml")  # until its tasks are filled in
    assert "tasks.one.data: there is no file data/one.jsonl" in refused.err
    (models / "data").mkdir()
    for number, name in enumerate(("one", "two")):
        rows = [{"text": " ".join(WORDS[(7 * row + number + n) % len(WORDS)] for n in range(6))} for row in range(24)]
        (models / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("validate", "search.yaml").code == 0
    sizes = ("--set", "splits={fit: 8, select: 4, report: 8}", "--set", "driver.population=4", "--budget", "8")
    done = run("search", "search.yaml", *sizes, "--quiet")
    assert done.code == 0, done.err
    records = [json.loads(line) for line in (models / "runs/search/trajectory.jsonl").read_text().splitlines()]
    assert sum(record["phase"] == "search" for record in records) == 8


def test_coefficients(run: Run, models: Path) -> None:
    torch.save(torch.tensor([0.3, 0.4]), "weights.pt")
    asked = ("init", "--from-adamerging", "weights.pt")
    assert "Name the models too" in run(*asked).err
    result = run(*asked, "--base", "base", "--expert", "two=two", "--expert", "one=one")
    assert result.code == 0, result.err
    assert yaml.safe_load((models / "recipe.yaml").read_text())["coefficients"] == pytest.approx(
        {"two": 0.3, "one": 0.4}
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--from-mergekit", "none.yml"), "There is no file none.yml"),
        (("--from-mergekit", "evolve.yml"), "use --from-mergekit-evolve"),
        (("--from-mergekit", "merge.yml", "--base", "base"), "takes the models from its file"),
        (("--from-mergekit", "merge.yml", "--task", "one=x"), "goes without --task"),
        (("--from-mergekit", "merge.yml", "--from-mergekit-evolve", "evolve.yml"), "were given; one file is made"),
        (("a.yaml", "--to", "b.yaml"), "FILE is a.yaml and --to is b.yaml"),
    ],
)
def test_refusals(run: Run, models: Path, arguments: tuple[str, ...], message: str) -> None:
    before = sorted(models.rglob("*"))
    result = run("init", *arguments)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err
    assert sorted(models.rglob("*")) == before
