r"""Texts into token ids, and for language models which tokens belong to the completion.

    encoded = encode_texts(tokenizer, ["a good film"], [None], max_tokens=128)
    encoded = encode_completions(tokenizer, ["Q: 2+2?\nA:"], [" 4"], max_tokens=128)

A prompt and its completion are tokenised together, because that is what a model is given; a token that straddles their
boundary holds characters of the completion and counts as part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EncodedText:
    """One tokenised example.

    Attributes:
        ids: Token ids, special tokens included.
        types: Segment of every token, for tokenizers that have segments.
        completion: Whether each token is part of the completion (language models only). Never set for the first
            token, which nothing predicts.
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
    """Tokenise texts, or pairs of texts, for a classifier; long ones are cut as the tokenizer does it.

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
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], completions: Sequence[str], *, max_tokens: int
) -> list[EncodedText]:
    """Tokenise prompt + completion for a language model, and mark the completion's tokens.

    Special tokens that the tokenizer adds are kept and not scored. Long examples lose their end.

    Args:
        tokenizer: Of the base or an expert.
        prompts: Context, possibly empty.
        completions: What is scored.
        max_tokens: Longest example, special tokens included.
    """
    if not prompts:
        return []
    joined = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    options = {"padding": False, "return_attention_mask": False, "return_special_tokens_mask": True, "verbose": False}
    if tokenizer.is_fast:
        output = tokenizer(joined, return_offsets_mapping=True, **options)
        outside = [
            [end <= len(prompt) for _, end in offsets]
            for prompt, offsets in zip(prompts, output["offset_mapping"], strict=True)
        ]
    else:
        output = tokenizer(joined, **options)
        alone = tokenizer(list(prompts), **options)["input_ids"]
        outside = [
            [place < shared for place in range(len(ids))]
            for ids, shared in (
                (ids, _common_prefix(ids, prompt)) for ids, prompt in zip(output["input_ids"], alone, strict=True)
            )
        ]
    limit = token_limit(tokenizer, max_tokens)
    encoded = []
    for ids, special, before in zip(output["input_ids"], output["special_tokens_mask"], outside, strict=True):
        completion = [not (is_special or early) for is_special, early in zip(special, before, strict=True)]
        completion[:1] = [False] * len(completion[:1])
        encoded.append(EncodedText(ids[:limit], None, completion[:limit]))
    return encoded


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many leading ids two sequences share."""
    length = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        length += 1
    return length
