"""Embeddings by the base model, and a search over examples that were chosen with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForSeq2SeqLM

from optmerge.config.load import build_config
from optmerge.errors import ModelError
from optmerge.records import SplitName
from optmerge.runner.embedding import BaseEmbedder
from optmerge.runner.problem import open_problem
from optmerge.runner.references import absolute_references
from optmerge.runner.search import search
from tests.image_zoo import image_settings, make_image_zoo
from tests.zoo import facts, make_zoo, zoo_settings

Settings = Callable[..., dict[str, Any]]


@pytest.fixture(params=["bert", "llama-tied"])
def make(request: pytest.FixtureRequest, settings: Settings, language_settings: Settings) -> Settings:
    return settings if request.param == "bert" else language_settings


def test_vectors_by_definition(make: Settings, tmp_path: Path) -> None:
    config = build_config(make(), root=tmp_path)
    problem = open_problem(config)
    cpu = torch.device("cpu")
    split = problem.calibration.tasks["b"].splits["fit"]
    vectors = {
        tokens: BaseEmbedder(problem.family, {"b": "b"}, device=cpu, dtype=torch.float32, batch_tokens=tokens)(
            "b", split
        )
        for tokens in (1, 64, 4096)
    }
    model = AutoModel.from_pretrained(config.base).eval()
    for batch in split.batches(batch_tokens=1):  # one by one, so without padding
        with torch.no_grad():
            hidden = model(**batch.inputs).last_hidden_state
        for found in vectors.values():
            torch.testing.assert_close(found[batch.positions], hidden.mean(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "clip"])
def test_images(kind: str, tmp_path: Path) -> None:
    zoo = make_image_zoo(tmp_path / "zoo", kind)
    heads = {"heads": "zero-shot"} if kind == "clip" else {}
    config = build_config(image_settings(zoo, **heads), root=tmp_path)
    problem = open_problem(absolute_references(config, tmp_path))
    cpu = torch.device("cpu")
    embed = BaseEmbedder(problem.family, {"a": "a"}, device=cpu, dtype=torch.float32, batch_tokens=64)
    split = problem.calibration.tasks["a"].splits["fit"]
    found = embed("a", split)
    model = AutoModel.from_pretrained(zoo / "base").eval()
    tower = model.vision_model if kind == "clip" else model
    (batch,) = split.batches(batch_tokens=100_000)
    with torch.no_grad():
        hidden = tower(batch.to("cpu").inputs["pixel_values"]).last_hidden_state
    torch.testing.assert_close(found[batch.positions], hidden.mean(1), rtol=1e-4, atol=1e-5)


def test_the_encoder_of_a_pair_reads(tmp_path: Path) -> None:
    zoo = make_zoo(tmp_path / "zoo", "t5")
    settings = zoo_settings(zoo)
    for task in settings["tasks"].values():
        del task["label"]
        task["template"] = {"prompt": "{text}", "completion": "{text}"}
    problem = open_problem(build_config(settings, root=tmp_path))
    cpu = torch.device("cpu")
    embed = BaseEmbedder(problem.family, {"a": "a"}, device=cpu, dtype=torch.float32, batch_tokens=64)
    split = problem.calibration.tasks["a"].splits["fit"]
    found = embed("a", split)
    model = AutoModelForSeq2SeqLM.from_pretrained(zoo / "base").eval()
    for batch in split.batches(batch_tokens=1):
        with torch.no_grad():
            hidden = model.get_encoder()(input_ids=batch.inputs["input_ids"]).last_hidden_state
        torch.testing.assert_close(found[batch.positions], hidden.mean(1), rtol=1e-4, atol=1e-5)


def test_hidden_states_that_are_not_finite(settings: Settings, tmp_path: Path) -> None:
    problem = open_problem(build_config(settings(), root=tmp_path))
    embed = BaseEmbedder(problem.family, {"a": "a"}, device=torch.device("cpu"), dtype=torch.float32, batch_tokens=64)
    embed._resident = problem.resident
    next(iter(problem.resident.parameters.values())).fill_(torch.inf)
    with pytest.raises(ModelError, match=r"task 'a' are not finite in float32.*sampling: random"):
        embed("a", problem.calibration.tasks["a"].splits["fit"])


def test_a_search_over_diverse_examples(make: Settings, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"splits": {"fit": 8, "select": 4, "report": 30}, "budget": {"evaluations": 2}}
    plain = make(**changes, output=str(tmp_path / "plain"))
    diverse = json.loads(json.dumps(plain | {"output": str(tmp_path / "diverse")}))
    diverse["tasks"]["a"]["sampling"] = {"name": "diverse", "pool": 60, "duplicate": 1.0}
    runs = {name: search(build_config(made, root=tmp_path), root=tmp_path) for name, made in
            (("plain", plain), ("diverse", diverse))}  # fmt: skip
    opened = {name: open_problem(build_config(made, root=tmp_path)) for name, made in
              (("plain", plain), ("diverse", diverse))}  # fmt: skip
    splits: tuple[SplitName, ...] = ("fit", "select", "report")
    same = {
        (task, split): opened["plain"].calibration.tasks[task].splits[split].keys
        == opened["diverse"].calibration.tasks[task].splits[split].keys
        for task in ("a", "b")
        for split in splits
    }
    changed = {("a", "fit"), ("a", "select")}
    assert same == {place: place not in changed for place in same}
    assert facts(runs["plain"].folder) != facts(runs["diverse"].folder)
