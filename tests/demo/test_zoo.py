"""The zoo: whole or absent, made once, the same every time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from optmerge.demo import train
from optmerge.demo.recipe import TrainingRecipe
from optmerge.demo.tasks import TASKS
from optmerge.demo.train import logistic_regression
from optmerge.demo.zoo import make_zoo, task_seed, zoo_at
from optmerge.models.cache import file_sha256
from tests.demo.test_assets import Copier

RECIPE = TrainingRecipe(steps=3, batch=4, warm_up=1, probe_examples=8, max_tokens=12)
TWO = ("sentiment", "topics")


def test_experts_are_stock_classifiers_with_label_names(shelf: Path, tmp_path: Path) -> None:
    zoo = make_zoo(tmp_path / "cache", TWO, RECIPE, download=Copier(shelf))
    assert zoo.missing() == []
    model = AutoModelForSequenceClassification.from_pretrained(zoo.expert("topics"))
    assert tuple(model.config.label2id) == TASKS["topics"].labels
    assert model.config.id2label[0] == "alt.atheism"
    tokens = AutoTokenizer.from_pretrained(zoo.expert("topics"))("a good film", return_tensors="pt")
    assert model(**tokens).logits.shape == (1, 20)
    base = AutoModelForSequenceClassification.from_pretrained(zoo.expert("sentiment"))
    assert torch.equal(base.bert.embeddings.word_embeddings.weight, model.bert.embeddings.word_embeddings.weight), (
        "the embeddings are frozen"
    )
    assert not torch.equal(
        base.bert.encoder.layer[0].output.dense.weight, model.bert.encoder.layer[0].output.dense.weight
    )


def test_what_is_there_is_not_made_again(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = make_zoo(tmp_path, TWO[:1], RECIPE, download=Copier(shelf))
    before = (zoo.expert("sentiment") / "model.safetensors").stat().st_mtime_ns
    trained: list[str] = []
    real = train.train_expert

    def noting(base: Path, rows: object, labels: object, folder: Path, **rest: object) -> None:
        trained.append(folder.name)
        real(base, rows, labels, folder, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(train, "train_expert", noting)
    again = make_zoo(tmp_path, TWO, RECIPE, download=Copier(shelf))
    assert trained == ["topics"]
    assert again.folder == zoo.folder
    assert (zoo.expert("sentiment") / "model.safetensors").stat().st_mtime_ns == before


def test_an_interrupted_training_leaves_no_expert(shelf: Path, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int | None) -> None:
        if (stage, done) == ("expert topics", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_zoo(tmp_path, TWO, RECIPE, download=Copier(shelf), progress=interrupt)
    zoo = zoo_at(tmp_path, TWO, RECIPE)
    assert zoo.missing() == ["topics"]
    assert not zoo.expert("topics").exists()


def test_training_is_deterministic_and_leaves_global_generators_alone(shelf: Path, tmp_path: Path) -> None:
    hashes = []
    for name in ("one", "two"):
        torch.manual_seed(len(hashes))
        state = torch.get_rng_state()
        zoo = make_zoo(tmp_path / name, TWO[:1], RECIPE, download=Copier(shelf))
        assert torch.equal(torch.get_rng_state(), state)
        hashes.append(file_sha256(zoo.expert("sentiment") / "model.safetensors"))
    assert hashes[0] == hashes[1]


def test_another_recipe_gets_another_zoo_and_tasks_their_own_seeds(tmp_path: Path) -> None:
    assert zoo_at(tmp_path, TWO, RECIPE).folder != zoo_at(tmp_path, TWO, TrainingRecipe()).folder
    assert zoo_at(tmp_path, TWO, RECIPE).folder == zoo_at(tmp_path, TWO[:1], RECIPE).folder
    assert task_seed("author", 0) != task_seed("topics", 0)


def test_logistic_regression_separates_what_can_be_separated() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(60) % 3
    features = torch.eye(3)[targets] + 0.1 * torch.randn(60, 3, generator=generator)
    weight, bias = logistic_regression(features, targets, 3)
    assert ((features @ weight.T + bias).argmax(dim=1) == targets).all()
