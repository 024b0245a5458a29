"""Texts, or pairs of texts, for sequence classifiers.

reader = SequenceClassificationReader(Task("films", TaskConfig(expert="critic", data="films.csv"), config, tokenizer))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from optmerge.calibration.batches import Batch, Examples
from optmerge.calibration.encode import EncodedText, encode_texts
from optmerge.calibration.labels import HeadLabels
from optmerge.calibration.reader import Reader, Task, as_text
from optmerge.calibration.splits import content_key
from optmerge.calibration.tokens import Tokens
from optmerge.models.architecture import Kind

Pair = tuple[str, str | None]


class SequenceClassificationReader(Reader[Pair, EncodedText]):
    """Reads the columns ``text`` and ``text_pair``."""

    kind: ClassVar[Kind] = "sequence-classification"
    takes: ClassVar[frozenset[str]] = frozenset({"text_pair"})
    truth_from: ClassVar[Literal["label", "inputs"]] = "label"
    settings: ClassVar[str] = "`text` (or `text_pair`)"
    unusable: ClassVar[str] = "have no token"

    def __init__(self, task: Task) -> None:
        spec = task.spec
        columns = [spec.text] if spec.text_pair is None else [spec.text, spec.text_pair]
        self._labels = HeadLabels(task)
        super().__init__(task, columns, f"text in column {spec.text!r}", classes=self._labels.classes)

    def raw(self, values: Mapping[str, Any], where: str) -> Pair | None:
        """See `Reader.raw`."""
        texts = [as_text(values[column], column, where) for column in self.columns]
        return (texts[0], texts[1] if len(texts) > 1 else None) if texts[0].strip() else None

    def key(self, raw: Pair) -> str:
        """See `Reader.key`."""
        return content_key(*raw)

    def encode(self, raws: Sequence[Pair]) -> list[list[EncodedText]]:
        """See `Reader.encode`."""
        firsts, seconds = [first for first, _ in raws], [second for _, second in raws]
        encoded = encode_texts(self.task.tokenizer, firsts, seconds, max_tokens=self.task.spec.max_tokens)
        return [[text] for text in encoded]

    def label(self, value: Any, encoded: EncodedText, names: Sequence[str], where: str) -> list[int]:
        """See `Reader.label`."""
        return [self._labels.index(value, names, where)]

    def examples(
        self, encoded: Sequence[EncodedText], labels: Sequence[list[int]] | None, *, labelled: bool
    ) -> Examples:
        """See `Reader.examples`."""
        classes = None if labels is None else torch.tensor([label for (label,) in labels], dtype=torch.int64)
        return ClassifiedTexts(Tokens(encoded, self.task.tokenizer), classes)


class ClassifiedTexts(Examples):
    """Tokenised texts with a class each, or without.

    Args:
        tokens: The n texts.
        classes: int64[n], or None.
    """

    def __init__(self, tokens: Tokens, classes: Tensor | None) -> None:
        self.lengths = tokens.lengths[:, None]
        self._tokens = tokens
        self._classes = classes

    def collate(self, positions: Tensor) -> Batch:
        """See `Examples.collate`."""
        classes = None if self._classes is None else self._classes[positions]
        return Batch(self._tokens.collate(positions), positions, None, classes)

    def inputs(self) -> Iterable[Tensor]:
        """See `Examples.inputs`."""
        return self._tokens.tensors()

    def truth(self) -> Tensor | None:
        """See `Examples.truth`."""
        return self._classes
