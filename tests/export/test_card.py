"""Model cards: valid for the Hub's own classes, true to the run, and silent on what is not known."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData

from optmerge.export import CheckpointExporter
from optmerge.export.card import model_card
from optmerge.export.evidence import Evidence, provenance
from optmerge.export.mergekit import mergekit_config
from optmerge.merging.recipe import ModelEntry, Recipe
from optmerge.models.family import Family
from optmerge.runner.reproduce import read_manifest, settings_of
from tests.export.families import random_recipe
from tests.export.test_licence import cards
from tests.tracking.fake_run import FakeRun

GetFamily = Callable[[str], Family]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that has ended, tracked online, whose manifest holds its search."""
    made = FakeRun(tmp_path / "run", layers=2, tasks=("sentiment", "the author")).begin().baselines().search(6).finish()
    manifest = made.folder / "manifest.json"
    search = {**made.settings(), "driver": {"name": "adam", "lr": 0.02}}
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "search": search}))
    page = "https://wandb.ai/me/merges/runs/abc"
    (made.folder / "wandb.json").write_text(json.dumps({"id": "abc", "segments": 1, "url": page}))
    return made.folder


def evidence_of(run: Path) -> Evidence:
    found = Evidence.of_run(run)
    assert found is not None
    return found


def flat(text: str) -> str:
    """Without the blanks that align tables."""
    return re.sub(r" +", " ", text)


class TestMetadata:
    """What the Hub reads."""

    def test_it_round_trips_through_the_hubs_own_classes(self, family: GetFamily, run: Path) -> None:
        models, evidence = family("llama"), evidence_of(run)
        with cards(models, base="license: mit", one="license: mit", two="license: mit"):
            card = ModelCard(model_card(random_recipe(models), models, evidence=evidence))
        assert card.data.license == "mit"
        assert card.data.library_name == "transformers"
        assert card.data.pipeline_tag == "text-generation"
        assert card.data.tags == ["merge", "mergekit", "optmerge"]
        assert card.data.model_name == "A merge of one, two"
        again = ModelCardData(**yaml.safe_load(card.data.to_yaml()))
        assert again.to_dict() == card.data.to_dict()

    def test_every_score_of_the_merge_is_a_result(self, family: GetFamily, run: Path) -> None:
        models, evidence = family("llama"), evidence_of(run)
        row = evidence.row
        assert row is not None
        card = ModelCard(model_card(random_recipe(models), models, evidence=evidence))
        results = card.data.eval_results
        assert results is not None
        assert {(each.task_name, each.metric_type): each.metric_value for each in results} == {
            (task, metric): value for task, metrics in row["report"].items() for metric, value in metrics.items()
        }
        _, low, high = row["interval"]["per_task"]["sentiment"]
        assert results[0].metric_name == f"accuracy (95 % interval {low:.4f} to {high:.4f}, 200 examples)"
        assert {each.dataset_split for each in results} == {"report"}
        # the Hub takes no other letters in a data set's type, and joins results of one data set and configuration
        assert all(re.fullmatch(r"(?:[\w-]+/)?[\w.-]+", each.dataset_type) for each in results)
        assert len({each.dataset_config for each in results}) == 2

    def test_a_metric_without_a_value_is_left_out(self, family: GetFamily, run: Path) -> None:
        models, evidence = family("llama"), evidence_of(run)
        result = json.loads(json.dumps(evidence.result))
        (row,) = (row for row in result["rows"] if row["kind"] == "search")
        row["report"]["sentiment"]["perplexity"] = None
        card = ModelCard(model_card(random_recipe(models), models, evidence=replace(evidence, result=result)))
        assert card.data.eval_results is not None
        assert "perplexity" not in {each.metric_type for each in card.data.eval_results}

    def test_models_on_the_hub_are_listed_once_with_their_relation(
        self, family: GetFamily, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        models = family("llama")
        for checkpoint, reference in [(models.base, "org/base@0123"), (models.experts["one"], "org/one")]:
            monkeypatch.setattr(checkpoint, "reference", reference)
        monkeypatch.setattr(models.experts["two"], "reference", "org/base")
        data = ModelCard(model_card(random_recipe(models), models)).data
        assert data.base_model == ["org/base", "org/one"]
        assert data.to_dict()["base_model_relation"] == "merge"

    def test_folders_are_no_base_models(self, family: GetFamily) -> None:
        data = ModelCard(model_card(random_recipe(family("llama")), family("llama"))).data.to_dict()
        assert not {"base_model", "base_model_relation", "license", "model-index"} & set(data)


class TestText:
    """What people read."""

    def test_scores_with_intervals_and_baselines(self, family: GetFamily, run: Path) -> None:
        models, evidence = family("llama"), evidence_of(run)
        text = flat(model_card(random_recipe(models), models, evidence=evidence))
        for row in evidence.rows:
            low, high = row["interval"]["low"], row["interval"]["high"]
            assert f"| {row['name']} | {row['mean']:.4f} | {low:.4f} to {high:.4f} |" in text
        assert "The row `adam` is this merge" in text
        assert "**beats** the best baseline" in text

    def test_the_search_and_how_to_repeat_it(self, family: GetFamily, run: Path) -> None:
        text = model_card(random_recipe(family("llama")), family("llama"), evidence=evidence_of(run))
        assert "- objective: `expert-kl`" in text
        assert "- driver: `adam`" in text
        assert "- search space: tensor-wise, 96 variables" in text
        assert "- examples of the author: fit 180, select 60, report 200" in text
        assert "(https://wandb.ai/me/merges/runs/abc)" in text
        assert "optmerge search --reproduce optmerge.json --output again" in text
        assert "optmerge merge recipe.yaml --to merged" in text

    def test_a_recipe_by_hand_has_no_search_and_no_scores(self, family: GetFamily) -> None:
        text = model_card(random_recipe(family("llama")), family("llama"))
        assert not any(word in text for word in ("## Scores", "## Search", "--reproduce", "Weights & Biases"))
        assert "| model.norm.weight |" in flat(text)

    def test_many_groups_are_shown_by_layer(self, family: GetFamily, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("optmerge.export.card.ROWS", 3)
        text = flat(model_card(random_recipe(family("llama")), family("llama")))
        assert "| layer 0 | 9 |" in text
        assert "| model.norm.weight |" not in text

    def test_no_place_of_this_machine_is_in_it(self, family: GetFamily, run: Path) -> None:
        models = family("llama")
        text = model_card(random_recipe(models), models, evidence=evidence_of(run))
        assert str(models.base.folder.parent) not in text
        assert "| base | `base` |" in flat(text)


class TestBeside:
    """The files beside the card."""

    @pytest.fixture
    def exported(self, family: GetFamily, run: Path, tmp_path: Path) -> Path:
        models = family("llama")
        evidence = evidence_of(run)
        return CheckpointExporter(verify=True).export(
            random_recipe(models), models, tmp_path / "merged", evidence=evidence
        )

    def test_a_mergekit_config_of_the_same_merge(self, exported: Path, family: GetFamily) -> None:
        models = family("llama")
        text = (exported / "mergekit_config.yml").read_text()
        assert text == mergekit_config(random_recipe(models), models)
        card = (exported / "README.md").read_text()
        assert "`mergekit_config.yml` makes the same merge" in card
        assert "mergekit" in ModelCard(card).data.tags

    def test_why_there_is_no_mergekit_config(self, family: GetFamily, tmp_path: Path) -> None:
        models = family("llama")
        folder = CheckpointExporter().export(random_recipe(models, method=True), models, tmp_path / "merged")
        assert not (folder / "mergekit_config.yml").exists()
        card = (folder / "README.md").read_text()
        assert "mergekit cannot make this merge: its direction iso-c is the delta of a method" in card
        assert ModelCard(card).data.tags == ["merge", "optmerge"]

    def test_the_manifest_reproduces_and_holds_the_recipe(self, exported: Path, run: Path) -> None:
        path = exported / "optmerge.json"
        stored = read_manifest(path)
        assert {key: stored[key] for key in stored if key != "recipe"} == json.loads(
            (run / "manifest.json").read_text()
        )
        assert settings_of(stored, path).driver.name == "adam"
        body: dict[str, Any] = stored["recipe"]
        assert body == yaml.safe_load((exported / "recipe.yaml").read_text())

    def test_a_recipe_by_hand_has_the_version_alone(self) -> None:
        from optmerge import __version__

        content = json.loads(provenance(b"optmerge_recipe: 1\n", None))
        assert content == {"versions": {"optmerge": __version__}, "recipe": {"optmerge_recipe": 1}}


def test_a_folder_without_result_has_no_evidence(tmp_path: Path) -> None:
    assert Evidence.of_run(tmp_path) is None


def test_a_result_alone_is_evidence(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"rows": []}')
    assert Evidence.of_run(tmp_path) == Evidence({"rows": []})


@pytest.mark.parametrize("name", ["README.md", "optmerge.json", "mergekit_config.yml", "recipe.yaml"])
def test_experts_cannot_be_called_like_the_files(name: str, family: GetFamily) -> None:
    models = family("bert")
    recipe: Recipe = random_recipe(models, experts={name: ModelEntry("x")})
    assert f"{name!r} cannot be the name of its folder" in str(CheckpointExporter().can_express(recipe, models))
