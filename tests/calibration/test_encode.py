from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerBase

from optmerge.calibration.encode import EncodedText, cut, encode_completions, encode_spans, encode_texts, windows


def completion_of(tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str) -> str:
    (encoded,) = encode_completions(tokenizer, [prompt], [completion])
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
    (encoded,) = encode_completions(tokenizer, ["a"], ["b"])
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    assert encoded.completion is not None
    assert sum(encoded.completion) == 1
    assert not any(s for i, s in zip(encoded.ids, encoded.completion, strict=True) if i in special)


def test_a_token_across_the_boundary_belongs_to_the_completion(pieces: PreTrainedTokenizerBase) -> None:
    assert len(pieces.tokenize("ab")) == 1
    assert completion_of(pieces, "xa", "b yes") == "ab yes"


def test_long_examples_lose_their_end(pieces: PreTrainedTokenizerBase) -> None:
    (whole,) = encode_completions(pieces, ["x"], ["yzyzyz"])
    encoded = cut(whole, 4)
    assert encoded.ids == whole.ids[:4]
    assert encoded.completion == [False, False, True, True]
    (lost,) = encode_completions(pieces, ["xyzxyz"], ["y"])
    assert not cut(lost, 4).usable


def test_classifiers_keep_their_last_special_token(words: PreTrainedTokenizerBase) -> None:
    (encoded,) = encode_texts(words, ["good bad film plot"], [None], max_tokens=4)
    assert words.convert_ids_to_tokens(encoded.ids) == ["[CLS]", "good", "bad", "[SEP]"]
    assert encoded.usable


def test_nothing_in_nothing_out(words: PreTrainedTokenizerBase) -> None:
    assert encode_texts(words, [], [], max_tokens=4) == []
    assert encode_completions(words, [], []) == []


@pytest.mark.parametrize("name", ["pieces", "python_bytes"])
def test_several_spans_of_a_text(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    text, spans = "q one q two q", [(2, 5), (8, 11)]
    (encoded,) = encode_spans(tokenizer, [text], [spans], add_special_tokens=False)
    assert encoded.completion is not None
    marked = [i for i, scored in zip(encoded.ids, encoded.completion, strict=True) if scored]
    assert tokenizer.decode(marked) == "onetwo"


@pytest.mark.parametrize(("length", "size", "stride"), [(10, 4, 2), (10, 4, 3), (11, 5, 1), (4, 4, 2), (1, 4, 2)])
def test_windows_score_every_token_once(length: int, size: int, stride: int) -> None:
    text = EncodedText(list(range(length)), None, [False] + [True] * (length - 1))
    made = windows(text, size=size, stride=stride)
    scored = [i for window in made for i, mark in zip(window.ids, window.completion or [], strict=True) if mark]
    assert scored == list(range(1, length))
    assert all(len(window.ids) <= size and not (window.completion or [True])[0] for window in made)
    assert all(window.ids[0] == place * stride for place, window in enumerate(made))


def test_windows_without_a_token_to_score_are_left_out() -> None:
    text = EncodedText(list(range(9)), None, [False] * 6 + [True] * 3)
    assert [window.ids for window in windows(text, size=3, stride=2)] == [[4, 5, 6], [6, 7, 8]]
