"""Diverse examples: drawn from a pool by what an embedder says, beside a report split that nothing touches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from optmerge.calibration.batches import Split
from optmerge.calibration.sampling import choose
from optmerge.config.sampling import DiverseConfig
from optmerge.config.tasks import SplitsConfig
from optmerge.errors import ConfigError, DataError
from optmerge.records import SplitName

from .conftest import Loader, write_lines

SIZES = SplitsConfig(fit=6, select=3, report=15)
TOPICS = 9
JUDGED: tuple[SplitName, ...] = ("fit", "select")


class Topics:
    """Tells inputs apart by their first word, n0 to n8, and by a little of the second."""

    key = "topics"

    def __init__(self, first_token: int) -> None:
        self.first_token = first_token
        self.calls = 0

    def __call__(self, task: str, examples: Split) -> Tensor:
        self.calls += 1
        result = torch.zeros(examples.size, TOPICS + 2)
        for batch in examples.batches(batch_tokens=64):
            assert batch.targets is None
            ids = batch.inputs["input_ids"]
            result[batch.positions, ids[:, 1] - self.first_token] = 1.0
            result[batch.positions, TOPICS] = 0.4 * torch.sin(ids[:, 2].float())
            result[batch.positions, TOPICS + 1] = 0.4 * torch.cos(ids[:, 2].float())
        return result


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTMERGE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def topics(tmp_path: Path, words: object) -> Topics:
    """Nine topics of very different sizes, at most 60 texts, in films.jsonl."""
    rows = [
        {"text": f"n{topic} n{10 + number} film", "label": ["yes", "no"][number % 2]}
        for topic in range(TOPICS)
        for number in range(60 if topic < 2 else 12)
    ]
    write_lines(tmp_path / "films.jsonl", rows)
    return Topics(words.convert_tokens_to_ids("n0"))  # type: ignore[attr-defined]


def test_every_topic_is_there_and_report_is_as_before(topics: Topics, load: Loader) -> None:
    splits = SplitsConfig(fit=TOPICS, select=TOPICS, report=15)
    random = load(splits=splits).tasks["films"].splits
    diverse = load(splits=splits, sampling={"name": "diverse", "pool": 180}, embed=topics).tasks["films"].splits
    assert diverse["report"].keys == random["report"].keys
    assert diverse["report"].sha256 == random["report"].sha256
    for split in JUDGED:
        (batch,) = diverse[split].batches(batch_tokens=10_000)
        assert diverse[split].size == TOPICS
        assert len(set(batch.inputs["input_ids"][:, 1].tolist())) == TOPICS
        assert list(diverse[split].keys) == sorted(diverse[split].keys)
    (batch,) = random["fit"].batches(batch_tokens=10_000)
    assert len(set(batch.inputs["input_ids"][:, 1].tolist())) < TOPICS
    assert not {*diverse["fit"].keys} & {*diverse["select"].keys, *diverse["report"].keys}


def test_labels_change_nothing(topics: Topics, load: Loader, tmp_path: Path) -> None:
    options = {"splits": SIZES, "sampling": "diverse", "label": "label", "embed": topics}
    before = load(**options, keep_labels=frozenset(JUDGED)).tasks["films"].splits
    path = tmp_path / "films.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_lines(path, [row | {"label": "yes"} for row in reversed(rows)])
    after = load(**options, keep_labels=frozenset(JUDGED)).tasks["films"].splits
    without = load(**options).tasks["films"].splits
    for split in JUDGED:
        assert before[split].keys == after[split].keys == without[split].keys
        assert before[split].labels_sha256 != after[split].labels_sha256


def test_the_choice_is_remembered(topics: Topics, load: Loader) -> None:
    first = load(splits=SIZES, sampling="diverse", embed=topics)
    assert topics.calls == 1
    again = load(splits=SIZES, sampling="diverse", embed=topics)
    assert topics.calls == 1
    assert again.fingerprint() == first.fingerprint()
    assert again.notes == first.notes
    assert "films: fit and select are 6 and 3 representatives of" in first.notes[-1]
    load(splits=SIZES, sampling={"name": "diverse", "duplicate": 0.9}, embed=topics)
    assert topics.calls == 2


def test_near_duplicates_are_left_out(topics: Topics, load: Loader) -> None:
    found = load(splits=SIZES, sampling={"name": "diverse", "duplicate": 0.6}, embed=topics)
    assert "near-duplicates." in found.notes[-1]
    with pytest.raises(DataError, match=r"of the \d+ examples in its pool 9 differ .*fit and select need 20 and 3"):
        load(
            splits=SplitsConfig(fit=20, select=3, report=15),
            sampling={"name": "diverse", "duplicate": 0.6},
            embed=topics,
        )


def test_a_plan_needs_no_embedder(topics: Topics, load: Loader) -> None:
    plan = load(splits=SIZES, sampling="diverse").tasks["films"].splits
    assert {name: split.size for name, split in plan.items()} == {"fit": 6, "select": 3, "report": 15}


def test_a_pool_that_is_too_small(topics: Topics, load: Loader) -> None:
    for embed in (topics, None):  # a plan, which needs no embedder, says it too
        with pytest.raises(ConfigError, match=r"tasks.films.sampling.pool is 8, and fit and select choose 9"):
            load(splits=SIZES, sampling={"name": "diverse", "pool": 8}, embed=embed)
    with pytest.raises(DataError, match=r"the splits need 615 examples .* has 204 distinct"):
        load(splits=SplitsConfig(fit=400, select=200, report=15), sampling="diverse", embed=topics)
    assert topics.calls == 0


def test_a_document_is_in_one_split(films: Path, load: Loader) -> None:
    pool = load(splits=SplitsConfig(fit=40, select=5, report=5)).tasks["films"].splits["fit"]

    def embed(task: str, examples: Split) -> Tensor:
        return torch.randn(examples.size, 5, generator=torch.Generator().manual_seed(0))

    embed.key = "random"  # type: ignore[attr-defined]
    for length in (1, 3, 8):
        documents = [f"text {place // length}" for place in range(pool.size)]
        sizes: dict[SplitName, int] = {"fit": 9, "select": 9}
        chosen = choose(embed, "films", pool, documents, DiverseConfig(duplicate=1.0), sizes)  # type: ignore[arg-type]
        fit, select = ({documents[place] for place in chosen.positions[split]} for split in JUDGED)
        assert {split: len(places) for split, places in chosen.positions.items()} == sizes
        assert not fit & select
