"""Words with a tag each, for token classifiers; a word's prediction is that of its first token.

    spec = TaskConfig(expert="names", data="news.jsonl", text="tokens", label="ner_tags")
    reader = TokenClassificationReader(Task("names", spec, config, tokenizer))

The column ``text`` holds either lists of words, and the label column a tag for each, or texts, and the label column
lists of spans: ``{"start": 0, "end": 6, "label": "CITY"}``, in characters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from optmerge.calibration.batches import Batch, Examples
from optmerge.calibration.encode import EncodedText, token_limit
from optmerge.calibration.labels import HeadLabels
from optmerge.calibration.ragged import Ragged
from optmerge.calibration.reader import Reader, Task, as_text
from optmerge.calibration.splits import content_key
from optmerge.calibration.tokens import Tokens
from optmerge.errors import ConfigError, DataError
from optmerge.models.architecture import Kind

Words = str | tuple[str, ...]  # a text, or its words


@dataclass(frozen=True)
class TaggedText:
    """A tokenised example.

    Attributes:
        text: Its tokens.
        first: Whether each token is the first of a word.
        words: How many words there are, those that were cut off included; None where the data has a text.
        starts: Where each word that is not cut off begins: its index, or in a text its first character. What a word is
            in a text, the tokenizer's own pre-tokenizer says.
    """

    text: EncodedText
    first: list[bool]
    words: int | None
    starts: list[int]


class TokenClassificationReader(Reader[Words, TaggedText]):
    """Reads the column ``text``: lists of words, or texts."""

    kind: ClassVar[Kind] = "token-classification"
    truth_from: ClassVar[Literal["label", "inputs"]] = "label"
    settings: ClassVar[str] = "`text`"
    unusable: ClassVar[str] = "have no word within max_tokens = {max_tokens}"

    def __init__(self, task: Task) -> None:
        self._labels = HeadLabels(task)
        super().__init__(task, [task.spec.text], f"text in column {task.spec.text!r}", classes=self._labels.classes)
        if not task.tokenizer.is_fast:
            raise ConfigError(
                f"{self.where}: the tokenizer cannot tell which tokens a word has, because it is written in Python. "
                "Save the experts with a fast tokenizer (tokenizer.json)."
            )

    def raw(self, values: Mapping[str, Any], where: str) -> Words | None:
        """See `Reader.raw`."""
        column = self.task.spec.text
        value = values[column]
        if not isinstance(value, list):
            text = as_text(value, column, where)
            return text if text.strip() else None
        words = tuple(as_text(word, column, where) for word in value)
        return words if any(word.strip() for word in words) else None

    def key(self, raw: Words) -> str:
        """See `Reader.key`."""
        return content_key(raw, None) if isinstance(raw, str) else content_key("words", *raw)

    def encode(self, raws: Sequence[Words]) -> list[list[TaggedText]]:
        """See `Reader.encode`."""
        return [[tagged] if tagged.starts else [] for tagged in map(self._tokens, raws)]

    def _tokens(self, raw: Words) -> TaggedText:
        tokenizer = self.task.tokenizer
        output = tokenizer(
            raw if isinstance(raw, str) else list(raw),
            is_split_into_words=not isinstance(raw, str),
            truncation=True,
            max_length=token_limit(tokenizer, self.task.spec.max_tokens),
            return_offsets_mapping=True,
        )
        first: list[bool] = []
        starts: list[int] = []
        before = None
        for word, (begin, _) in zip(output.word_ids(), output["offset_mapping"], strict=True):
            first.append(word is not None and word != before)
            if first[-1]:
                starts.append(_first_character(raw, begin) if isinstance(raw, str) else word)
            before = word
        text = EncodedText(output["input_ids"], output.get("token_type_ids"))
        return TaggedText(text, first, None if isinstance(raw, str) else len(raw), starts)

    def label(self, value: Any, encoded: TaggedText, names: Sequence[str], where: str) -> list[int]:
        """See `Reader.label`."""
        column = self.task.spec.label
        if not isinstance(value, list):
            what = "has no value" if value is None else f"holds a {type(value).__name__}"
            raise DataError(
                f"{where}: the label column {column!r} {what}; expected a list: a tag for every word, or for a text "
                'spans such as {"start": 0, "end": 6, "label": "CITY"}.'
            )
        if encoded.words is None:
            tags = _tags_of_spans(value, encoded.starts, self._labels.known, f"{where}: the label column {column!r}")
        elif len(value) != encoded.words:
            raise DataError(
                f"{where} has {encoded.words} words in column {self.task.spec.text!r} and {len(value)} tags in the "
                f"label column {column!r}. Give every word a tag."
            )
        else:
            tags = [value[word] for word in encoded.starts]
        return [self._labels.index(tag, names, where) for tag in tags]

    def examples(
        self, encoded: Sequence[TaggedText], labels: Sequence[list[int]] | None, *, labelled: bool
    ) -> Examples:
        """See `Reader.examples`."""
        tokens = Tokens([one.text for one in encoded], self.task.tokenizer)
        first = Ragged([one.first for one in encoded], torch.bool)
        return TaggedTexts(tokens, first, None if labels is None else Ragged(labels, torch.int64))


class TaggedTexts(Examples):
    """Tokenised texts, of which the first token of every word is scored.

    Args:
        tokens: The n texts.
        first: Whether each token is the first of a word.
        tags: The class of every word, or None.
    """

    def __init__(self, tokens: Tokens, first: Ragged, tags: Ragged | None) -> None:
        self.lengths = tokens.lengths[:, None]
        self._tokens = tokens
        self._first = first
        self._tags = tags

    def collate(self, positions: Tensor) -> Batch:
        """See `Examples.collate`."""
        tags = None if self._tags is None else self._tags.joined(positions)
        return Batch(self._tokens.collate(positions), positions, self._first.padded(positions, 0), tags)

    def inputs(self) -> Iterable[Tensor]:
        """See `Examples.inputs`."""
        yield from self._tokens.tensors()
        yield self._first.values

    def truth(self) -> Tensor | None:
        """See `Examples.truth`."""
        return None if self._tags is None else self._tags.values


def _first_character(text: str, begin: int) -> int:
    """Where a word begins whose first token may begin with white space."""
    rest = text[begin:]
    return begin + len(rest) - len(rest.lstrip())


def _tags_of_spans(spans: Sequence[Any], starts: Sequence[int], known: Iterable[str], where: str) -> list[str]:
    """The tag of every word of a text: ``O`` outside of all spans; within, the head's own spelling (``B-``, ``I-``).

    A word belongs to the span that holds its first character.
    """
    names = set(known)
    tags = ["O"] * len(starts)
    for span in spans:
        begin, end, label = (span.get(key) if isinstance(span, dict) else None for key in ("start", "end", "label"))
        if not isinstance(begin, int) or not isinstance(end, int) or not isinstance(label, str):
            raise DataError(
                f'{where} holds {str(span)[:80]!r}; expected a span such as {{"start": 0, "end": 6, "label": "CITY"}}.'
            )
        inside = [word for word, start in enumerate(starts) if begin <= start < end]
        for place, word in enumerate(inside):
            spelled = f"{'I' if place else 'B'}-{label}"
            tags[word] = spelled if spelled in names else label
    return tags
