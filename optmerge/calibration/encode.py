r"""Texts into token ids, and for language models which tokens are scored.

    encoded = encode_texts(tokenizer, ["a good film"], [None], max_tokens=128)
    encoded = encode_completions(tokenizer, ["Q: 2+2?\nA:"], [" 4"])
    encoded = windows(encoded[0], size=128, stride=64)

A prompt and its completion are tokenised together, because that is what a model is given; a token that straddles their
boundary holds characters of the completion and counts as part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]  # characters of a text, from and up to


@dataclass(frozen=True)
class EncodedText:
    """One tokenised example.

    Attributes:
        ids: Token ids, special tokens included.
        types: Segment of every token, for tokenizers that have segments.
        completion: Whether each token is scored (language models only). Never set for the first token, which nothing
            predicts.
    """

    ids: list[int]
    types: list[int] | None = None
    completion: list[bool] | None = None

    @property
    def usable(self) -> bool:
        """Whether a language model's example has a token to score (always true for a classifier's)."""
        return self.completion is None or any(self.completion)


def token_limit(tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> int:
    """``max_tokens``, or what the tokenizer says its model can take, if that is less."""
    return min(max_tokens, int(min(tokenizer.model_max_length, 2**31 - 1)))


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], pairs: Sequence[str | None], *, max_tokens: int
) -> list[EncodedText]:
    """Tokenise texts, or pairs of texts; long ones are cut as the tokenizer does it.

    Args:
        tokenizer: Of the base or an expert.
        texts: First (or only) inputs.
        pairs: Second inputs; either all are None or none is.
        max_tokens: Longest example, special tokens included.
    """
    if not texts:
        return []
    seconds = [pair for pair in pairs if pair is not None] or None
    output = tokenizer(
        list(texts),
        seconds,
        truncation=True,
        max_length=token_limit(tokenizer, max_tokens),
        padding=False,
        return_attention_mask=False,
    )
    types = output.get("token_type_ids") or [None] * len(texts)
    return [EncodedText(ids, segments) for ids, segments in zip(output["input_ids"], types, strict=True)]


def encode_completions(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], completions: Sequence[str]
) -> list[EncodedText]:
    """Tokenise prompt + completion for a language model, and mark the completion's tokens.

    Special tokens that the tokenizer adds are kept and not scored.

    Args:
        tokenizer: Of the base or an expert.
        prompts: Context, possibly empty.
        completions: What is scored.
    """
    joined = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    spans = [[(len(prompt), len(text))] for prompt, text in zip(prompts, joined, strict=True)]
    return encode_spans(tokenizer, joined, spans, add_special_tokens=True)


def encode_spans(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    spans: Sequence[Sequence[Span]],
    *,
    add_special_tokens: bool,
) -> list[EncodedText]:
    """Tokenise texts for a language model, and mark the tokens that hold a character of a span.

    Args:
        tokenizer: Of the base or an expert.
        texts: Whole texts.
        spans: Of every text, the parts that are scored.
        add_special_tokens: Whether the tokenizer adds its own; they are not scored.
    """
    if not texts:
        return []
    options = {
        "add_special_tokens": add_special_tokens,
        "padding": False,
        "return_attention_mask": False,
        "return_special_tokens_mask": True,
        "verbose": False,
    }
    output = tokenizer(list(texts), return_offsets_mapping=tokenizer.is_fast, **options)
    if tokenizer.is_fast:
        marked = [
            [any(end > first and begin < last for first, last in own) for begin, end in offsets]
            for offsets, own in zip(output["offset_mapping"], spans, strict=True)
        ]
    else:
        marked = [
            _mark_by_prefixes(tokenizer, text, ids, own, options)
            for text, ids, own in zip(texts, output["input_ids"], spans, strict=True)
        ]
    encoded = []
    for ids, special, inside in zip(output["input_ids"], output["special_tokens_mask"], marked, strict=True):
        completion = [bool(mark and not added) for mark, added in zip(inside, special, strict=True)]
        completion[:1] = [False] * len(completion[:1])
        encoded.append(EncodedText(ids, None, completion))
    return encoded


def _mark_by_prefixes(
    tokenizer: PreTrainedTokenizerBase, text: str, ids: Sequence[int], spans: Sequence[Span], options: dict[str, bool]
) -> list[bool]:
    """Which tokens lie in a span, found from what the text's beginnings share with it: the tokenizer has no offsets."""

    def tokens_before(end: int) -> int:
        """How many leading tokens the text shares with its first ``end`` characters."""
        if end >= len(text):
            return len(ids)
        beginning = tokenizer([text[:end]], **options)["input_ids"][0]
        pairs = zip(ids, beginning, strict=False)
        return next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(ids), len(beginning)))

    bounds = [(tokens_before(first), tokens_before(last)) for first, last in spans]
    return [any(first <= place < last for first, last in bounds) for place in range(len(ids))]


def cut(text: EncodedText, size: int) -> EncodedText:
    """A language model's example without what comes after its first ``size`` tokens."""
    return EncodedText(text.ids[:size], None, None if text.completion is None else text.completion[:size])


def windows(text: EncodedText, *, size: int, stride: int) -> list[EncodedText]:
    """A long text as windows of ``size`` tokens that start every ``stride`` tokens; usable ones only.

    Every token is scored in the first window that predicts it, so it is scored once, and from the second window on with
    at least ``size - stride`` tokens before it.

    Args:
        text: A language model's example.
        size: Tokens of a window; the last may be shorter.
        stride: Less than ``size``.

    >>> [w.ids for w in windows(EncodedText([1, 2, 3, 4, 5], None, [False] + [True] * 4), size=3, stride=2)]
    [[1, 2, 3], [3, 4, 5]]
    """
    marks = text.completion or [False] * len(text.ids)
    made, begin, done = [], 0, 1
    while True:
        end = min(begin + size, len(text.ids))
        completion = [mark and place >= done for place, mark in enumerate(marks[begin:end], begin)]
        made.append(EncodedText(text.ids[begin:end], None, completion))
        if end == len(text.ids):
            return [window for window in made if window.usable]
        begin, done = begin + stride, end
