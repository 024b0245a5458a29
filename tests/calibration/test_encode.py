from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerBase

from optmerge.calibration.encode import encode_completions, encode_texts


def completion_of(tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str, *, max_tokens: int = 64) -> str:
    (encoded,) = encode_completions(tokenizer, [prompt], [completion], max_tokens=max_tokens)
    assert encoded.completion is not None
    return tokenizer.decode([i for i, scored in zip(encoded.ids, encoded.completion, strict=True) if scored])


@pytest.mark.parametrize("name", ["pieces", "python_bytes"])
@pytest.mark.parametrize(("prompt", "completion"), [("ab?", " yes ab"), ("", "ab yes"), ("é:", "ü"), ("x", "y")])
def test_completion_tokens_are_the_completion(
    name: str, prompt: str, completion: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(name)
    got = completion_of(tokenizer, prompt, completion)
    first_is_predicted = tokenizer.bos_token_id is not None or prompt
    assert got == (completion if first_is_predicted else completion[1:])


@pytest.mark.parametrize("name", ["pieces", "python_bytes"])
def test_the_tokenizers_special_tokens_are_not_scored(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    (encoded,) = encode_completions(tokenizer, ["a"], ["b"], max_tokens=8)
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    assert encoded.completion is not None
    assert sum(encoded.completion) == 1
    assert not any(s for i, s in zip(encoded.ids, encoded.completion, strict=True) if i in special)


def test_a_token_across_the_boundary_belongs_to_the_completion(pieces: PreTrainedTokenizerBase) -> None:
    assert len(pieces.tokenize("ab")) == 1
    assert completion_of(pieces, "xa", "b yes") == "ab yes"


def test_long_examples_lose_their_end(pieces: PreTrainedTokenizerBase) -> None:
    (encoded,) = encode_completions(pieces, ["x"], ["yzyzyz"], max_tokens=4)
    assert len(encoded.ids) == 4
    assert encoded.completion == [False, False, True, True]
    (lost,) = encode_completions(pieces, ["xyzxyz"], ["y"], max_tokens=4)
    assert not lost.usable


def test_classifiers_keep_their_last_special_token(words: PreTrainedTokenizerBase) -> None:
    (encoded,) = encode_texts(words, ["good bad film plot"], [None], max_tokens=4)
    assert words.convert_ids_to_tokens(encoded.ids) == ["[CLS]", "good", "bad", "[SEP]"]
    assert encoded.usable


def test_nothing_in_nothing_out(words: PreTrainedTokenizerBase) -> None:
    assert encode_texts(words, [], [], max_tokens=4) == []
    assert encode_completions(words, [], [], max_tokens=4) == []
