"""A zoo small enough to search in seconds: tiny BERT classifiers with heads of their own, and texts with labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

WORDS = [f"w{i}" for i in range(60)]


def make_zoo(folder: Path, *, experts: int = 2, labels: tuple[int, ...] = (2, 3), rows: int = 90) -> Path:
    """base/, expert0/, expert1/, ... and task0.jsonl, task1.jsonl, ... below ``folder``."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    raw = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]")
    settings: dict[str, Any] = {
        "vocab_size": len(vocabulary),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 32,
    }
    generator = torch.Generator().manual_seed(0)

    def shake(model: torch.nn.Module, scale: float) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))

    base = BertModel(BertConfig(**settings))
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if "LayerNorm.weight" in name else 0.4 * noise)
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    for number in range(experts):
        model = BertForSequenceClassification(BertConfig(**settings, num_labels=labels[number]))
        model.bert.load_state_dict(base.state_dict())
        shake(model.bert, 0.3)
        shake(model.classifier, 1.0)
        model.save_pretrained(folder / f"expert{number}")
        tokenizer.save_pretrained(folder / f"expert{number}")
        with open(folder / f"task{number}.jsonl", "w") as handle:
            for row in range(rows):
                picks = torch.randint(0, len(WORDS), (4 + row % 9,), generator=generator).tolist()
                text = " ".join(WORDS[i] for i in picks)
                handle.write(json.dumps({"text": text, "label": f"LABEL_{sum(picks) % labels[number]}"}) + "\n")
    return folder


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def settings(zoo: Path) -> Callable[..., dict[str, Any]]:
    """A search file's content over the zoo; keyword arguments replace keys."""

    def make(**changes: Any) -> dict[str, Any]:
        return {
            "base": str(zoo / "base"),
            "experts": {"a": str(zoo / "expert0"), "b": str(zoo / "expert1")},
            "tasks": {
                "a": {"expert": "a", "data": str(zoo / "task0.jsonl"), "label": "label"},
                "b": {"expert": "b", "data": str(zoo / "task1.jsonl"), "label": "label"},
            },
            "space": {"granularity": "layer-wise"},
            "objective": {"terms": [{"name": "expert-kl"}]},
            "driver": {"name": "adam", "lr": 0.05},
            "splits": {"fit": 24, "select": 16, "report": 30},
            "baselines": {"grid": [0.3, 0.6], "method_grid": [1.0]},
            "budget": {"evaluations": 8},
            "device": "cpu",
            "output": "run",
        } | changes

    return make


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests never touch the user's cache."""
    monkeypatch.setenv("OPTMERGE_CACHE", str(tmp_path_factory.mktemp("cache")))
