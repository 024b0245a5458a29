"""Searches over sequence-to-sequence models: tied and untied embeddings, both drivers of kinds, export and reload."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from optmerge.cli.tryout import MERGED, Tryout
from optmerge.config.load import build_config
from optmerge.export.api import export
from optmerge.records import Trajectory
from optmerge.runner.search import search
from tests.tiny import own_output, save_family, sentences
from tests.zoo import zoo_settings


@pytest.fixture(scope="module", params=["tied", "own"])
def zoo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny T5s with data of their own: a text and its words in reverse order."""
    folder = tmp_path_factory.mktemp(request.param)
    save_family("t5", folder, scale=0.3, change=own_output if request.param == "own" else None)
    for number, name in enumerate(("one", "two")):
        rows = [{"text": text, "back": " ".join(text.split()[::-1])} for text in sentences(90, seed=number)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def settings(zoo: Path, **changes: Any) -> dict[str, Any]:
    made = zoo_settings(zoo, **changes)
    for task in made["tasks"].values():
        del task["label"]
        task["template"] = {"prompt": "w1 {text}", "completion": "{back}"}
    return made


@pytest.mark.parametrize(
    ("term", "driver"),
    [("expert-kl", {"name": "adam", "lr": 0.05}), ("cross-entropy", {"name": "adam"}), ("accuracy", {"name": "cma"})],
)
def test_every_objective_can_be_searched(zoo: Path, tmp_path: Path, term: str, driver: dict[str, Any]) -> None:
    made = settings(zoo, objective={"terms": [{"name": term}]}, driver=driver, budget={"evaluations": 16})
    run = search(build_config(made, root=tmp_path), root=tmp_path)
    records = [record for record in Trajectory.read(run.folder).records if record.phase == "search"]
    assert all(record.value is not None and math.isfinite(record.value) for record in records)
    rows = {row["name"]: row for row in run.result["rows"]}
    assert rows["expert:a"]["report"]["a"]["agreement"] == 1.0
    assert rows["expert:a"]["report"]["b"]["agreement"] < 1.0
    assert run.recipe is not None
    assert run.recipe.heads == "merged"
    if term == "expert-kl":
        fit = [record.value for record in records if record.split == "fit"]
        # From the best baseline, which leaves less to gain where the output layer is merged on its own.
        assert fit[-1] < (0.97 if zoo.name.startswith("tied") else 0.985) * fit[0]


def test_an_exported_model_says_what_the_search_measured(zoo: Path, tmp_path: Path) -> None:
    run = search(build_config(settings(zoo), root=tmp_path), root=tmp_path)
    export(run.folder, "checkpoint", tmp_path / "merged")
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged").eval()
    tryout = Tryout.open(run.folder)
    tryout.engine.apply(tryout.tables[MERGED])
    resident = tryout.resident.model_for("a")
    inputs = {"input_ids": torch.tensor([[6, 7, 8, 5]]), "decoder_input_ids": torch.tensor([[0, 9]])}
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, resident(**inputs).logits)
        tryout.engine.apply(tryout.tables["a"])
        assert not torch.allclose(model(**inputs).logits, resident(**inputs).logits, atol=1e-3)
    assert (model.lm_head.weight is model.shared.weight) == ("tied" in zoo.name)
    answers = list(tryout.answers(["w1 w2"], max_new_tokens=4))
    assert [answer.model for answer in answers] == [MERGED, "a", "b"]
    written = model.generate(torch.tensor([[7, 8, 5]]), max_new_tokens=4, do_sample=False)
    assert answers[0].says == tryout.tokenizer.decode(written[0], skip_special_tokens=True)
