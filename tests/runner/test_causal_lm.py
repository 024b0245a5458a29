"""Searches over causal language models: every objective, tied embeddings, templates."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optmerge.config.load import build_config
from optmerge.records import Trajectory
from optmerge.runner.search import search

Settings = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("term", "driver"),
    [
        ("expert-kl", "adam"),
        ("entropy", "adam"),
        ("cross-entropy", "adam"),
        ("accuracy", "cma"),
        ("expert-kl", "optuna"),
    ],
)
def test_every_objective_can_be_searched(language_settings: Settings, tmp_path: Path, term: str, driver: str) -> None:
    settings = language_settings(objective={"terms": [{"name": term}]}, driver={"name": driver})
    run = search(build_config(settings, root=tmp_path), root=tmp_path)
    records = [record for record in Trajectory.read(run.folder).records if record.phase == "search"]
    assert len(records) == 8
    assert all(record.value is not None and math.isfinite(record.value) for record in records)
    if driver == "adam":
        assert all(record.gradient_norm for record in records)
    rows = {row["name"]: row for row in run.result["rows"]}
    assert rows["expert:a"]["report"]["a"]["agreement"] == 1.0
    assert run.recipe is not None
    assert run.recipe.heads == "merged"


def test_only_completions_are_scored(language_settings: Settings, tmp_path: Path) -> None:
    """The same completions behind other prompts of one length are another search; without a prompt, another again."""
    results = []
    for prompt in ("w1 w2 ", "w3 w4 "):
        settings = language_settings()
        for task in settings["tasks"].values():
            task["template"] = {"prompt": prompt, "completion": "{text}"}
        folder = tmp_path / prompt.strip().replace(" ", "-")
        results.append(search(build_config(settings, root=folder), root=folder).result["best"]["select"])
    assert results[0] != results[1]


def test_top_k_of_the_whole_vocabulary_equals_all_classes(language_settings: Settings, tmp_path: Path) -> None:
    values = []
    for top_k in (None, 64):
        settings = language_settings(objective={"terms": [{"name": "expert-kl", "top_k": top_k}]})
        run = search(build_config(settings, root=tmp_path / str(top_k)), root=tmp_path / str(top_k))
        values.append([record.value for record in Trajectory.read(run.folder).records if record.split != "report"])
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_the_result_is_plain_json(language_settings: Settings, tmp_path: Path) -> None:
    run = search(build_config(language_settings(), root=tmp_path), root=tmp_path)
    assert json.loads((run.folder / "result.json").read_text()) == run.result


CHAT = (
    "{% for m in messages %}<s> {{ m.role }} {{ m.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<s> assistant {% endif %}"
)


@pytest.mark.parametrize(
    "task",
    [
        {"template": "chat"},
        {"template": {"prompt": "{text}", "completion": "w1 {text}", "chat": True}},
        {"max_tokens": 6, "stride": 3},
    ],
    ids=["messages", "prompts", "windows"],
)
def test_chats_and_windows_are_searched(
    language_settings: Settings, language_zoo: Path, tmp_path: Path, task: dict[str, Any]
) -> None:
    base = tmp_path / "base"
    shutil.copytree(language_zoo / "base", base)
    (base / "chat_template.jinja").write_text(CHAT)
    settings = language_settings(base=str(base), budget={"evaluations": 3}, baselines={"grid": [0.3]})
    for name, spec in settings["tasks"].items():
        rows = [json.loads(line) for line in Path(spec["data"]).read_text().splitlines()]
        for row in rows:
            asked, said = row["text"].rsplit(" ", 1)
            row["messages"] = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        spec |= {"data": str(path), **task}
    run = search(build_config(settings, root=tmp_path), root=tmp_path)
    fit = [record.value for record in Trajectory.read(run.folder).records if record.phase == "search"]
    assert all(value is not None and math.isfinite(value) for value in fit)
    rows = {row["name"]: row for row in run.result["rows"]}
    assert rows["expert:a"]["report"]["a"]["agreement"] == 1.0
    assert rows["expert:b"]["report"]["a"]["agreement"] < 1.0
