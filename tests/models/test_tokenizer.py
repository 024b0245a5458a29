"""Tokenizers of families."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from optmerge.errors import ModelError
from optmerge.models.family import Family, open_family
from optmerge.models.tokenizer import tokenizer_for
from tests.tiny import TinyFamily, save_family


def _open(made: TinyFamily) -> Family:
    experts = {name: str(folder) for name, folder in made.experts.items()}
    return open_family(str(made.base), experts, relative_to=made.base, check_values=False)


def test_base_and_experts(tiny: Callable[[str], TinyFamily]) -> None:
    family = _open(tiny("bert"))
    for who in ("base", "one", "two"):
        assert tokenizer_for(family, who)("w0 w1")["input_ids"] == [2, 6, 7, 3]


def test_unknown_member(tiny: Callable[[str], TinyFamily]) -> None:
    with pytest.raises(ModelError, match="Did you mean 'one'"):
        tokenizer_for(_open(tiny("bert")), "ones")


def test_absent_and_damaged(tmp_path: Path) -> None:
    made = save_family("llama", tmp_path)
    family = _open(made)
    (made.base / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot load the tokenizer"):
        tokenizer_for(family, "base")
    for file in made.base.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match=r"base has no tokenizer.*one, two"):
        tokenizer_for(family, "base")


def test_padding_falls_back_on_the_end_of_text(tmp_path: Path) -> None:
    made = save_family("gpt2", tmp_path)
    config = made.base / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"pad_token": "[PAD]"', '"pad_token": null'))
    assert tokenizer_for(_open(made), "base").pad_token == "</s>"
