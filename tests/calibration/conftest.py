"""Tiny tokenizers, made on the spot: whole words with segments, byte-level pieces, and one written in Python."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from optmerge.calibration import Calibration, load_calibration
from optmerge.config.tasks import SplitsConfig, TaskConfig

WORDS = ["good", "bad", "film", "fine", "plot", "poor", "cast", "slow", "fast", "very", *(f"n{i}" for i in range(100))]
Loader = Callable[..., Calibration]


@pytest.fixture(scope="session")
def words() -> PreTrainedTokenizerBase:
    """[CLS] a b [SEP] c [SEP], with segment ids."""
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@pytest.fixture(scope="session")
def pieces() -> PreTrainedTokenizerBase:
    """Byte-level BPE without a padding token, which puts <s> in front; ``ab`` and `` yes`` are single tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(["ab ab ab yes yes yes"] * 20, trainer)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def python_bytes() -> PreTrainedTokenizerBase:
    """A tokenizer without offsets: one token a byte, and </s> behind."""
    return ByT5Tokenizer()


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """60 distinct rows with text and label."""
    rows = [{"text": f"n{i} {'good' if i % 2 else 'bad'} film", "label": "yes" if i % 2 else "no"} for i in range(60)]
    return write_lines(tmp_path / "films.jsonl", rows)


@pytest.fixture
def load(tmp_path: Path, words: PreTrainedTokenizerBase) -> Loader:
    """Load one task called ``films``; keywords of the task, or of `load_calibration`."""

    def loader(data: str = "films.jsonl", *, splits: SplitsConfig | None = None, **given: Any) -> Calibration:
        options = {
            name: given.pop(name)
            for name in ("tokenizer", "kind", "keep_labels", "limit", "relative_to", "embed", "label_readers")
            if name in given
        }
        head = given.pop("head", {"no": 0, "yes": 1})
        return load_calibration(
            {"films": TaskConfig(expert="critic", data=data, **given)},
            splits or SplitsConfig(fit=20, select=10, report=15),
            **{
                "tokenizer": words,
                "kind": "sequence-classification",
                "configs": {"films": BertConfig(label2id=head, id2label={i: name for name, i in head.items()})},
                "relative_to": tmp_path,
                **options,
            },
        )

    return loader
