"""The Python API over a real (tiny) search, with every view that it feeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import optuna
import pytest
import torch

import optmerge
from optmerge.records import Trajectory
from optmerge.tracking.tracker_sink import TrackerSink
from tests.tracking.wandb_reader import segments
from tests.zoo import facts, make_zoo, zoo_settings


@pytest.fixture(autouse=True)
def _own_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb-home"))
    for name in ("WANDB_MODE", "WANDB_RUN_ID", "WANDB_DIR", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_a_search_feeds_every_view_and_none_changes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = make_zoo(tmp_path / "zoo", "bert")
    tracked = zoo_settings(zoo, tracking={"wandb": "offline"}, driver={"name": "cma", "population": 4})
    run = optmerge.search(tracked, root=tmp_path, overrides=["output=tracked"])
    records = Trajectory.read(run.folder).records

    (segment,) = segments(run.folder)
    assert [row["record"] for row in segment.evaluations] == [record.id for record in records]
    assert [artifact.type for artifact in segment.artifacts].count("recipe") == 1
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(run.folder / "optuna.journal"))
    )
    (study,) = optuna.get_all_study_summaries(storage)
    assert study.n_trials == sum(record.phase == "search" for record in records)
    assert "## " in (run.folder / "report.md").read_text()
    assert {"trajectory.png", "coefficients.png"} <= {path.name for path in run.folder.glob("*.png")}

    plain = optmerge.search(tracked, root=tmp_path, overrides=["output=plain", "tracking.wandb=disabled"])
    assert facts(plain.folder) == facts(run.folder)

    def broken(*_: object) -> None:
        raise RuntimeError("no tracker today")

    monkeypatch.setattr(TrackerSink, "start", broken)
    without = optmerge.search(tracked, root=tmp_path, overrides=["output=broken"])
    assert facts(without.folder) == facts(run.folder)


def test_a_merged_run_is_the_searched_model(tmp_path: Path) -> None:
    settings = zoo_settings(make_zoo(tmp_path / "zoo", "llama-tied"), directions=["experts", "iso-c"])
    for task in settings["tasks"].values():
        del task["label"]
    run = optmerge.search(settings, root=tmp_path)
    tensors = optmerge.merge(run.folder)
    folder = optmerge.merge(run.recipe, tmp_path / "merged")
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(folder)
    parameters = dict(loaded.named_parameters())
    assert set(tensors) == set(parameters)
    assert all(torch.equal(parameters[name], tensor) for name, tensor in tensors.items())
    again = optmerge.resume(run.folder)
    assert again.recipe is not None
    assert run.recipe is not None
    assert np.array_equal(again.recipe.coefficients, run.recipe.coefficients)
