"""The configurations that mergekit-evolve's documentation shows: each is translated, valid, and one is run to its end.

docs/evolve.md of mergekit has the general form and describes each option; the tutorial that it came with has three
models of 32 layers. Folders of tiny models, as many and as deep, stand in the place of the models' names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.conftest import Run
from tests.tiny import WORDS, save_family

EXPERTS = ("one", "two", "three")
NARROW: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1}

# name -> layers of the models, what stands under `genome` beside the models, and `tasks`
DOCUMENTED: dict[str, tuple[int, dict[str, Any], list[Any]]] = {
    "general form": (
        8,
        {
            "merge_method": "dare_ties",
            "base_model": "base",
            "tokenizer_source": None,
            "layer_granularity": 8,
            "normalize": False,
            "allow_negative_weights": False,
            "smooth": False,
        },
        [{"name": "lm_eval_task_name", "weight": 1.0, "metric": "acc,none"}, {"name": "another_task"}],
    ),
    "filters": (
        8,
        {"merge_method": "dare_ties", "base_model": "base", "layer_granularity": 8, "filters": ["self_attn", "mlp"]},
        [{"name": "lm_eval_task_name"}],
    ),
    "32 layers in groups of 8": (
        32,
        {"merge_method": "ties", "base_model": "base", "layer_granularity": 8, "normalize": True},
        ["lm_eval_task_name"],
    ),
    "no layer_granularity": (8, {"merge_method": "linear"}, ["lm_eval_task_name"]),
    "smooth": (32, {"merge_method": "linear", "layer_granularity": 8, "smooth": True}, ["lm_eval_task_name"]),
    "slerp": (8, {"merge_method": "slerp", "layer_granularity": 8}, ["lm_eval_task_name"]),
    "the tutorial": (
        32,
        {
            "merge_method": "task_arithmetic",
            "base_model": "base",
            "layer_granularity": 8,
            "allow_negative_weights": True,
        },
        [{"name": "alpaca_prompt_format", "weight": 0.4}, {"name": "perplexity", "weight": -1.0, "metric": "ppl,none"}],
    ),
}


@pytest.fixture(scope="module")
def zoos(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Layers -> a folder with base, three experts, and a few texts of each expert's task."""
    made = {}
    for layers in (8, 32):
        folder = made[layers] = tmp_path_factory.mktemp(f"layers{layers}")
        save_family("llama", folder, experts=EXPERTS, num_hidden_layers=layers, **NARROW)
        (folder / "data").mkdir()
        for number, name in enumerate(EXPERTS):
            texts = (" ".join(WORDS[(7 * row + number + n) % len(WORDS)] for n in range(6)) for row in range(24))
            (folder / "data" / f"{name}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return made


@pytest.mark.parametrize("name", DOCUMENTED)
def test_documented_configurations_are_valid_searches(
    name: str, run: Run, zoos: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers, genome, tasks = DOCUMENTED[name]
    monkeypatch.setenv("OPTMERGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(zoos[layers])
    evolve, search = tmp_path / "evolve.yml", f"{name.replace(' ', '-')}.yaml"
    evolve.write_text(yaml.safe_dump({"genome": {"models": list(EXPERTS), **genome}, "tasks": tasks}))
    made = run("init", "--from-mergekit-evolve", evolve, search)
    assert made.code == 0, made.err
    checked = run("validate", search, "--json")
    assert checked.code == 0, checked.err
    facts = json.loads(checked.out)
    assert set(facts["models"].values()) == {"folder"}
    assert set(facts["config"]["experts"]) == set(EXPERTS)
    assert facts["config"]["driver"]["name"] == "cma"
    if name == "general form":
        sizes = ("--set", "splits={fit: 6, select: 4, report: 4}", "--set", "driver.population=4", "--budget", "8")
        untrained = ("--set", "alarms.collapse=warn")
        done = run("search", search, *sizes, *untrained, "--output", tmp_path / "run", "--quiet", "--json")
        assert done.code == 0, done.err
        assert json.loads(done.out)["result"]["evaluations"] == 8
        shown = json.loads(run("status", tmp_path / "run", "--json").out)
        assert shown["status"] == "finished"
