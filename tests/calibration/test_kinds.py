"""What each text kind makes of its rows, and what it refuses."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BartConfig, PreTrainedTokenizerBase, T5Config

from optmerge.calibration import load_calibration
from optmerge.calibration.batches import Batch
from optmerge.config.tasks import SplitsConfig, TaskConfig, TemplateConfig
from optmerge.errors import ConfigError, DataError
from optmerge.records import SplitName
from tests.tiny import tiny_tokenizer

from .conftest import Loader, write_lines

SMALL = SplitsConfig(fit=2, select=2, report=2)
REPORT = frozenset[SplitName]({"report"})
ALL = frozenset[SplitName]({"fit", "select", "report"})
TAGS = {"O": 0, "B-CITY": 1, "I-CITY": 2}


def one_batch(load: Loader, **options: Any) -> Batch:
    """The report split's only batch."""
    task = load(splits=SMALL, **options).tasks["films"]
    (batch,) = task.splits["report"].batches(batch_tokens=4096)
    return batch


# Sequence to sequence.


def answered(path: Path, **changes: Any) -> dict[str, Any]:
    """Options of a task whose answers have 2 to 7 words, and its file."""
    rows = [{"q": f"w{i} w1", "a": " ".join(f"w{k}" for k in range(i + 2))} for i in range(6)]
    write_lines(path / "films.jsonl", rows)
    return {
        "kind": "seq2seq-lm",
        "tokenizer": tiny_tokenizer("t5"),
        "template": TemplateConfig(prompt="w9 {q}", completion="{a}"),
        **changes,
    }


def test_prompts_go_to_the_encoder_and_completions_to_the_decoder(tmp_path: Path, load: Loader) -> None:
    tokenizer = tiny_tokenizer("t5")
    options = answered(tmp_path, keep_labels=REPORT)
    batch = load_t5(tmp_path, options).splits["report"].batches(batch_tokens=4096)[0]
    assert batch.targets is not None
    assert batch.scored is not None
    assert list(batch.inputs) == ["input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask"]
    ends = 0
    for row in range(batch.size):
        source = batch.inputs["input_ids"][row][batch.inputs["attention_mask"][row] == 1]
        count = int(batch.scored[row].sum())
        target = batch.targets[ends : ends + count]
        ends += count
        number = int(tokenizer.decode(source).split()[1][1:])
        assert tokenizer.decode(source) == f"w9 w{number} w1 </s>"
        assert tokenizer.decode(target) == " ".join(f"w{k}" for k in range(number + 2)) + " </s>"
        assert batch.inputs["decoder_input_ids"][row, :count].tolist() == [3, *target[:-1].tolist()]
        assert batch.inputs["decoder_attention_mask"][row].tolist() == batch.scored[row].long().tolist()
    assert ends == len(batch.targets)
    assert batch.tokens == batch.inputs["input_ids"].numel() + batch.inputs["decoder_input_ids"].numel()


def load_t5(folder: Path, options: dict[str, Any], config: Any = None) -> Any:
    given = dict(options)
    loading = {name: given.pop(name) for name in ("tokenizer", "kind", "keep_labels") if name in given}
    spec = TaskConfig(expert="critic", data="films.jsonl", **given)
    configs = {"films": config or T5Config(decoder_start_token_id=3)}
    return load_calibration({"films": spec}, SMALL, configs=configs, relative_to=folder, **loading).tasks["films"]


def test_batches_of_two_lengths_stay_within_the_limit(tmp_path: Path) -> None:
    split = load_t5(tmp_path, answered(tmp_path)).splits["fit"]
    (whole,) = split.batches(batch_tokens=4096)
    assert whole.targets is None
    assert [batch.size for batch in split.batches(batch_tokens=whole.tokens)] == [2]
    assert [batch.size for batch in split.batches(batch_tokens=whole.tokens - 1)] == [1, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": None}, 'Set template: {prompt: "...", completion: "..."}'),
        ({"template": "chat"}, "the experts are sequence-to-sequence models"),
        ({"template": TemplateConfig()}, "need an input and an answer"),
        ({"label": "a"}, "template uses the column 'a', which tasks.films.label declares to be the label"),
        ({"pack": True}, "pack is for causal language models, and the experts are sequence-to-sequence models"),
        ({"stride": 4}, "stride is for causal language models"),
    ],
)
def test_what_sequence_to_sequence_models_refuse(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_t5(tmp_path, answered(tmp_path, **changes))


def test_a_decoder_without_a_beginning_is_refused(tmp_path: Path) -> None:
    config = BartConfig(decoder_start_token_id=None, bos_token_id=None)
    with pytest.raises(ConfigError, match="names no decoder_start_token_id"):
        load_t5(tmp_path, answered(tmp_path), config)


# Token classification.


@pytest.fixture
def cities(tmp_path: Path, pieces: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Options of a task with words and tags, and its file: n<i> is in the city ``new york``, six times."""
    rows = [{"words": [f"n{i}", "in", "new", "york"], "tags": ["O", "O", "B-CITY", "I-CITY"]} for i in range(6)]
    write_lines(tmp_path / "films.jsonl", rows)
    return {"kind": "token-classification", "tokenizer": pieces, "head": TAGS, "text": "words", "label": "tags"}


def check(batch: Batch, tokenizer: PreTrainedTokenizerBase, *, gap: str) -> None:
    """Every word is predicted at its first token, and has its tag."""
    assert batch.scored is not None
    assert batch.targets is not None
    assert batch.targets.tolist() == [0, 0, 1, 2] * batch.size
    for ids, scored, mask in zip(batch.inputs["input_ids"], batch.scored, batch.inputs["attention_mask"], strict=True):
        begins = [*scored.nonzero().flatten().tolist(), int(mask.sum())]
        words = [tokenizer.decode(ids[a:b]) for a, b in pairwise(begins)]
        assert re.fullmatch(rf"(n\d|[a-f])\|{gap}in\|{gap}new\|{gap}york", "|".join(words))


def test_words_and_tags(cities: dict[str, Any], load: Loader, pieces: PreTrainedTokenizerBase) -> None:
    pieces.add_prefix_space = False
    batch = one_batch(load, keep_labels=REPORT, **cities)
    assert batch.inputs["input_ids"].shape[1] > 5  # words of several tokens
    check(batch, pieces, gap="")


def test_texts_and_spans(tmp_path: Path, cities: dict[str, Any], load: Loader, pieces: PreTrainedTokenizerBase) -> None:
    rows = [{"words": f"{n} in new york", "tags": [{"start": 5, "end": 13, "label": "CITY"}]} for n in "abcdef"]
    write_lines(tmp_path / "films.jsonl", rows)
    check(one_batch(load, keep_labels=REPORT, **cities), pieces, gap=" ")
    plain = {**cities, "head": {"O": 0, "CITY": 1}}
    batch = one_batch(load, keep_labels=REPORT, **plain)
    assert batch.targets is not None
    assert batch.targets.tolist() == [0, 0, 1, 1] * 2


def test_tags_are_numbers_of_the_head_or_of_the_tasks_mapping(
    tmp_path: Path, cities: dict[str, Any], load: Loader, pieces: PreTrainedTokenizerBase
) -> None:
    rows = [{"words": [f"n{i}", "in", "new", "york"], "tags": [0, 0, 1, 2]} for i in range(6)]
    write_lines(tmp_path / "films.jsonl", rows)
    check(one_batch(load, keep_labels=REPORT, **cities), pieces, gap="")
    mapped = one_batch(load, keep_labels=REPORT, labels={"0": 2, "1": 1, "2": 0}, **cities)
    assert mapped.targets is not None
    assert mapped.targets.tolist() == [2, 2, 1, 0] * 2


def test_words_that_are_cut_off_have_no_prediction(cities: dict[str, Any], load: Loader) -> None:
    whole = one_batch(load, keep_labels=REPORT, **cities)
    assert whole.scored is not None
    third = int(whole.scored[0].nonzero()[2])
    batch = one_batch(load, keep_labels=REPORT, max_tokens=third + 1, **cities)
    assert batch.targets is not None
    assert batch.targets.tolist() == [0, 0, 1] * 2


def test_without_labels_every_word_is_still_predicted(cities: dict[str, Any], load: Loader) -> None:
    task = load(splits=SMALL, keep_labels=REPORT, **cities).tasks["films"]
    (fit,) = task.splits["fit"].batches(batch_tokens=4096)
    assert fit.targets is None
    assert fit.rows is not None
    assert len(fit.rows) == 8
    assert task.num_labels == 3
    labelled = load(splits=SMALL, keep_labels=ALL, **cities).tasks["films"]
    assert labelled.splits["fit"].sha256 == task.splits["fit"].sha256
    assert labelled.splits["fit"].labels_sha256 != task.splits["fit"].labels_sha256


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"words": ["a", "b"], "tags": ["O"]}, "has 2 words in column 'words' and 1 tags"),
        ({"words": ["a"], "tags": None}, "the label column 'tags' has no value; expected a list"),
        ({"words": ["a"], "tags": "O"}, "the label column 'tags' holds a str; expected a list"),
        ({"words": ["a"], "tags": ["B-CTY"]}, "Did you mean 'B-CITY'"),
        ({"words": [["a"]], "tags": ["O"]}, "column 'words' holds a list; expected text"),
        ({"words": "a b", "tags": [{"start": 0, "label": "CITY"}]}, "expected a span such as"),
        ({"words": "a b", "tags": [{"start": 0, "end": 1, "label": "TOWN"}]}, "the label 'TOWN' is not among"),
    ],
)
def test_damaged_rows(tmp_path: Path, cities: dict[str, Any], load: Loader, row: dict[str, Any], message: str) -> None:
    write_lines(tmp_path / "films.jsonl", [row, *({"words": [f"n{i}"], "tags": ["O"]} for i in range(5))])
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        load(splits=SMALL, keep_labels=ALL, **cities)
    assert "films.jsonl, row 1" in str(caught.value)


def test_rows_without_words_are_left_out(tmp_path: Path, cities: dict[str, Any], load: Loader) -> None:
    rows = [{"words": [f"n{i}"], "tags": ["O"]} for i in range(6)]
    write_lines(tmp_path / "films.jsonl", [*rows, {"words": [], "tags": []}, {"words": [" "], "tags": ["O"]}])
    notes = load(splits=SMALL, **cities).notes
    assert notes == ["films: 2 of 8 rows have no text and are left out."]


def test_a_tokenizer_that_does_not_know_its_words_is_refused(
    cities: dict[str, Any], load: Loader, python_bytes: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(ConfigError, match="cannot tell which tokens a word has"):
        load(splits=SMALL, **{**cities, "tokenizer": python_bytes})


# Windows and packed rows.


def test_windows_of_a_document_stay_in_one_split(tmp_path: Path, load: Loader, pieces: PreTrainedTokenizerBase) -> None:
    rows = [{"text": " ".join(f"{i}{k}" for k in range(10 + 3 * i))} for i in range(9)]
    write_lines(tmp_path / "films.jsonl", rows)
    options = {"kind": "causal-lm", "tokenizer": pieces, "max_tokens": 16, "stride": 8, "keep_labels": ALL}
    splits = load(splits=SplitsConfig(fit=0.4, select=0.2, report=0.2), **options).tasks["films"].splits
    documents = {}
    for name, split in splits.items():
        assert len(set(split.keys)) == split.size
        text = "".join(
            pieces.decode(ids) for batch in split.batches(batch_tokens=4096) for ids in batch.inputs["input_ids"]
        )
        documents[name] = {i for i in range(9) if f" {i}5" in text}
    assert all(documents.values())
    assert not documents["fit"] & documents["select"]
    assert not documents["fit"] & documents["report"]
    assert not documents["select"] & documents["report"]
    counted = load(splits=SplitsConfig(fit=5, select=3, report=3), **options).tasks["films"].splits
    assert {name: split.size for name, split in counted.items()} == {"fit": 5, "select": 3, "report": 3}


@pytest.mark.parametrize("stride", [16, 40])
def test_a_stride_beyond_the_window_is_refused(
    films: Path, load: Loader, pieces: PreTrainedTokenizerBase, stride: int
) -> None:
    with pytest.raises(ConfigError, match=f"stride is {stride}; expected less than the 16 tokens of a window"):
        load(kind="causal-lm", tokenizer=pieces, max_tokens=16, stride=stride)


def test_packed_rows_hold_the_same_examples(tmp_path: Path, load: Loader, pieces: PreTrainedTokenizerBase) -> None:
    rows = [{"text": "ab yes " * (1 + i % 5) + str(i)} for i in range(30)]
    write_lines(tmp_path / "films.jsonl", rows)
    options = {"kind": "causal-lm", "tokenizer": pieces, "max_tokens": 40, "keep_labels": ALL}
    splits = SplitsConfig(fit=10, select=5, report=15)
    packed = load(splits=splits, pack=True, **options).tasks["films"].splits["report"]
    alone = load(splits=splits, **options).tasks["films"].splits["report"]
    assert packed.sha256 != alone.sha256
    assert packed.unpacked().sha256 == alone.sha256
    assert alone.unpacked() is alone
    pairs = list(zip(packed.batches(batch_tokens=200), alone.batches(batch_tokens=200), strict=True))
    assert sum(len(one.inputs["input_ids"]) for one, _ in pairs) < sum(len(other.positions) for _, other in pairs)
    for one, other in pairs:
        assert one.inputs["input_ids"].shape[1] <= 40
        assert torch.equal(one.positions, other.positions)
        assert torch.equal(one.rows, other.rows)
        assert torch.equal(one.targets, other.targets)
        # Taken apart, the rows are what they would have been.
        mask = other.inputs["attention_mask"].bool()
        ids = one.unpacked(one.inputs["input_ids"][..., None])[..., 0]
        assert torch.equal(ids[mask], other.inputs["input_ids"][mask])
        at = one.unpacked(one.inputs["position_ids"][..., None])[..., 0]
        assert torch.equal(at[mask], torch.arange(mask.shape[1]).expand_as(mask)[mask])
        assert torch.equal(one.to("cpu").places, one.places)


def test_the_padding_side_of_a_tokenizer_changes_nothing(
    films: Path, load: Loader, pieces: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = []
    for side in ("right", "left"):
        monkeypatch.setattr(pieces, "padding_side", side)
        batches.append(load(kind="causal-lm", tokenizer=pieces).tasks["films"].splits["fit"].batches(batch_tokens=400))
    for right, left in zip(*batches, strict=True):
        assert torch.equal(right.inputs["input_ids"], left.inputs["input_ids"])
        assert torch.equal(right.inputs["attention_mask"], left.inputs["attention_mask"])
