"""The lm-eval term: lm-eval's own value, on documents that no other split sees, and nobody's generator disturbed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from optmerge.config.objectives import LmEvalConfig
from optmerge.errors import ConfigError, DataError
from optmerge.models.family import open_family
from optmerge.models.resident import ResidentModel
from optmerge.models.tokenizer import tokenizer_for
from optmerge.objective.harness import LmEval
from optmerge.objective.whole import Surroundings
from tests.tiny import WORDS, save_family, sentences

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'optmerge[lm-eval]'")

DOCUMENTS = 60


def documents(folder: Path, count: int = DOCUMENTS, *, seed: int = 0) -> Path:
    """Questions with four choices each, one of them called right."""
    path = folder / "questions.jsonl"
    rows = [
        {"question": text, "choices": [WORDS[(place + step) % len(WORDS)] for step in range(4)], "answer": place % 4}
        for place, text in enumerate(sentences(count, seed=seed, longest=8))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def task_file(folder: Path, name: str = "tiny_choice", **changes: Any) -> Path:
    """A multiple-choice task over `documents`, as a user would write it."""
    folder.mkdir(exist_ok=True)
    content: dict[str, Any] = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(documents(folder))}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [
            {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            {"metric": "brier_score", "aggregation": "brier_score", "higher_is_better": False},
        ],
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content | changes))
    return path


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Surroundings, torch.nn.Module]:
    tiny = save_family("llama-tied", tmp_path_factory.mktemp("models"))
    references = {name: str(folder) for name, folder in tiny.experts.items()}
    family = open_family(str(tiny.base), references, relative_to=Path())
    resident = ResidentModel(family, device=torch.device("cpu"), dtype=torch.float32)
    around = Surroundings(kind="causal-lm", reads=tokenizer_for(family, "base"), base=family.base.folder)
    return around, resident.model_for("one")


def opened(around: Surroundings, path: Path, **settings: Any) -> LmEval:
    term = LmEval(LmEvalConfig(tasks=[str(path)], **settings))
    term.open(around)
    return term


@pytest.mark.parametrize(("metric", "fewshot"), [("acc,none", None), ("brier_score,none", 2)])
def test_value_is_that_of_lm_eval_on_the_checkpoint(
    surroundings: tuple[Surroundings, torch.nn.Module], tmp_path: Path, metric: str, fewshot: int | None
) -> None:
    from lm_eval import simple_evaluate

    around, model = surroundings
    path = task_file(tmp_path / "tasks")
    term = opened(around, path, metric=metric, num_fewshot=fewshot)
    ours = term.measure(model, "fit")
    state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    theirs = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(around.base), "dtype": "float32", "device": "cpu"},
        tasks=[str(path)],
        samples=dict(term._opened().positions["fit"]),
        num_fewshot=fewshot,
        batch_size=3,
        bootstrap_iters=0,
    )
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])
    assert theirs is not None
    assert ours == pytest.approx(theirs["results"]["tiny_choice"][metric], abs=1e-6)
    assert term.measure(model, "fit") == ours
    assert term.higher_is_better == (metric == "acc,none")


def test_global_generators_are_left_as_they_were(
    surroundings: tuple[Surroundings, torch.nn.Module], tmp_path: Path
) -> None:
    around, model = surroundings
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    term = opened(around, task_file(tmp_path / "tasks"), num_fewshot=1)
    term.measure(model, "fit")
    assert random.getstate() == before[0]
    after = np.random.get_state()
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(after, before[1], strict=True))
    assert torch.equal(torch.get_rng_state(), before[2])


def test_the_model_stays_as_it_was(surroundings: tuple[Surroundings, torch.nn.Module], tmp_path: Path) -> None:
    around, model = surroundings
    before = {name: (parameter, parameter.clone()) for name, parameter in model.named_parameters()}
    opened(around, task_file(tmp_path / "tasks")).measure(model, "report")
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    for name, (parameter, value) in before.items():
        assert after[name] is parameter
        assert torch.equal(parameter, value)
        assert not parameter.requires_grad


def test_splits_share_no_document_and_follow_content(
    surroundings: tuple[Surroundings, torch.nn.Module], tmp_path: Path
) -> None:
    around, _ = surroundings
    path = task_file(tmp_path / "tasks")
    term = opened(around, path)
    rows = (tmp_path / "tasks" / "questions.jsonl").read_text().splitlines()
    texts = {
        split: {rows[place] for place in positions["tiny_choice"]}
        for split, positions in term._opened().positions.items()
    }
    assert {split: len(found) for split, found in texts.items()} == {"fit": 30, "select": 15, "report": 15}
    assert len(set().union(*texts.values())) == DOCUMENTS
    shuffled = [*rows[::-1], rows[0]]  # another order, and a document that stands twice
    other = tmp_path / "shuffled.jsonl"
    other.write_text("".join(row + "\n" for row in shuffled))
    again = opened(around, task_file(tmp_path / "tasks2", dataset_kwargs={"data_files": {"test": str(other)}}))
    for split, positions in again._opened().positions.items():
        assert {shuffled[place] for place in positions["tiny_choice"]} == texts[split]
    few = opened(around, path, limit=4)._opened().positions
    assert [len(few[split]["tiny_choice"]) for split in ("fit", "select", "report")] == [4, 4, 4]  # type: ignore[index]


def test_identity_follows_documents_and_settings(
    surroundings: tuple[Surroundings, torch.nn.Module], tmp_path: Path
) -> None:
    around, _ = surroundings
    path = task_file(tmp_path / "tasks")
    first = opened(around, path).identity()
    assert opened(around, path).identity() == first
    assert list(first) == ["lm-eval task tiny_choice"]
    assert opened(around, task_file(tmp_path / "tasks", doc_to_text="{{question}} w1")).identity() != first
    task_file(tmp_path / "tasks")
    documents(tmp_path / "tasks", seed=1)
    assert opened(around, path).identity() != first


def test_several_tasks_are_averaged(surroundings: tuple[Surroundings, torch.nn.Module], tmp_path: Path) -> None:
    around, model = surroundings
    one, two = task_file(tmp_path / "a"), task_file(tmp_path / "b", "other", doc_to_text="w5 {{question}}")
    both = LmEval(LmEvalConfig(tasks=[str(one), str(two)]))
    both.open(around)
    alone = [opened(around, path).measure(model, "fit") for path in (one, two)]
    assert both.measure(model, "fit") == pytest.approx(sum(alone) / 2)


@pytest.mark.parametrize(
    ("changes", "settings", "words"),
    [
        ({}, {"metric": "accc,none"}, ["'accc,none'", "acc, brier_score", "Did you mean 'acc'"]),
        (
            {"dataset_kwargs": {"data_files": "gone.jsonl"}},
            {},
            ["cannot load the task", "tiny_choice.yaml", "absolute"],
        ),
        ({"output_type": "no_such"}, {}, ["cannot load the task"]),
    ],
)
def test_tasks_that_cannot_be_used(
    surroundings: tuple[Surroundings, torch.nn.Module],
    tmp_path: Path,
    changes: dict[str, Any],
    settings: dict[str, Any],
    words: list[str],
) -> None:
    with pytest.raises(ConfigError) as caught:
        opened(surroundings[0], task_file(tmp_path / "tasks", **changes), **settings)
    for word in words:
        assert word in str(caught.value)


def test_an_unknown_filter_is_told_at_the_first_measurement(
    surroundings: tuple[Surroundings, torch.nn.Module], tmp_path: Path
) -> None:
    around, model = surroundings
    term = opened(around, task_file(tmp_path / "tasks"), metric="acc,strict")
    with pytest.raises(ConfigError, match=r"gives no 'acc,strict'; expected one of acc,none"):
        term.measure(model, "fit")


def test_missing_files_twins_and_too_few_documents(
    surroundings: tuple[Surroundings, torch.nn.Module], tmp_path: Path
) -> None:
    around, _ = surroundings
    path = task_file(tmp_path / "tasks")
    with pytest.raises(ConfigError, match=r"no such file\. Did you mean 'tiny_choice\.yaml'"):
        opened(around, path.with_name("tiny_choise.yaml"))
    twin = tmp_path / "twin.yaml"
    twin.write_text(path.read_text())
    with pytest.raises(ConfigError, match="'tiny_choice' twice"):
        LmEval(LmEvalConfig(tasks=[str(path), str(twin)])).open(around)
    documents(tmp_path / "tasks", 3)
    with pytest.raises(DataError, match="3 different documents, too few"):
        opened(around, path)


def test_public_tests_are_refused(
    surroundings: tuple[Surroundings, torch.nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    around, _ = surroundings
    with pytest.raises(ConfigError, match=r"hellaswag, the test set of a public benchmark.*allow_public_tests: true"):
        opened(around, Path("hellaswag"))
    # A YAML of one's own over a hub data set: the builder is local, and goes by a hub's name.
    monkeypatch.setattr("optmerge.objective.harness_tasks._LOCAL_BUILDERS", frozenset())
    path = task_file(tmp_path / "tasks")
    with pytest.raises(ConfigError, match="tiny_choice, the test set of a public benchmark"):
        opened(around, path)
    opened(around, path, allow_public_tests=True)
    data = {"data_files": {"validation": str(documents(tmp_path / "tasks"))}}
    opened(around, task_file(tmp_path / "tasks", test_split=None, validation_split="validation", dataset_kwargs=data))


def test_other_kinds_of_models_are_refused(surroundings: tuple[Surroundings, torch.nn.Module], tmp_path: Path) -> None:
    around, _ = surroundings
    classifier = Surroundings("seq2seq-lm", around.reads, around.base)
    with pytest.raises(ConfigError, match="these are of the kind seq2seq-lm"):
        opened(classifier, task_file(tmp_path / "tasks"))
