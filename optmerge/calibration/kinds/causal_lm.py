"""Prompts and completions for causal language models; without a template, texts that are scored whole.

reader = CausalLMReader(Task("chat", TaskConfig(expert="chat", data="chat.jsonl"), config, tokenizer))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from optmerge.calibration.batches import Batch, Examples
from optmerge.calibration.encode import EncodedText, encode_completions
from optmerge.calibration.ragged import Ragged
from optmerge.calibration.reader import Reader, Task, as_text
from optmerge.calibration.splits import content_key
from optmerge.calibration.template import PromptTemplate
from optmerge.calibration.tokens import Tokens
from optmerge.errors import ConfigError

Prompted = tuple[str, str]  # prompt, completion


class CausalLMReader(Reader[Prompted, EncodedText]):
    """Fills a template from a row's columns, or takes the column ``text``."""

    truth_from: ClassVar[Literal["label", "inputs"]] = "inputs"
    settings: ClassVar[str] = "`text` (or `template`)"

    unusable: ClassVar[str] = "have no completion token within max_tokens = {max_tokens}"

    def __init__(self, task: Task) -> None:
        spec, where = task.spec, f"tasks.{task.name}"
        if spec.text_pair is not None:
            raise ConfigError(
                f"{where}.text_pair is for classifiers; the experts are language models, so use template."
            )
        self._template = None
        columns: Sequence[str] = (spec.text,)
        if spec.template is not None:
            self._template = PromptTemplate.parse(spec.template.prompt, spec.template.completion, where=where)
            columns = self._template.columns
        content = "completion" if spec.template else f"text in column {spec.text!r}"
        super().__init__(task, columns, content, classes=None)
        refuse_label_among_inputs(spec.label, self.columns, where, templated=self._template is not None)

    def raw(self, values: Mapping[str, Any], where: str) -> Prompted | None:
        """See `Reader.raw`."""
        row = {column: as_text(values[column], column, where) for column in self.columns}
        prompt, completion = ("", row[self.columns[0]]) if self._template is None else self._template.fill(row)
        return (prompt, completion) if completion.strip() else None

    def key(self, raw: Prompted) -> str:
        """See `Reader.key`."""
        return content_key(*raw)

    def encode(self, raws: Sequence[Prompted]) -> list[list[EncodedText]]:
        """See `Reader.encode`."""
        prompts, completions = [prompt for prompt, _ in raws], [completion for _, completion in raws]
        encoded = encode_completions(self.task.tokenizer, prompts, completions, max_tokens=self.task.spec.max_tokens)
        return [[text] if text.usable else [] for text in encoded]

    def examples(
        self, encoded: Sequence[EncodedText], labels: Sequence[list[int]] | None, *, labelled: bool
    ) -> Examples:
        """See `Reader.examples`."""
        scored = Ragged([text.completion or [] for text in encoded], torch.bool)
        return Completions(Tokens(encoded, self.task.tokenizer), scored, labelled=labelled)


class Completions(Examples):
    """Tokenised texts, and which of their tokens are scored.

    Args:
        tokens: The n texts.
        completion: Whether each token is scored; never the first of a text, which nothing predicts.
        labelled: Whether batches have targets: the scored tokens themselves.
    """

    def __init__(self, tokens: Tokens, completion: Ragged, *, labelled: bool) -> None:
        self.lengths = tokens.lengths[:, None]
        self._tokens = tokens
        self._completion = completion
        self._labelled = labelled

    def collate(self, positions: Tensor) -> Batch:
        """See `Examples.collate`."""
        inputs = self._tokens.collate(positions)
        completion = self._completion.padded(positions, 0)
        scored = torch.zeros_like(completion)
        scored[:, :-1] = completion[:, 1:]  # the prediction of a token stands one place before it
        return Batch(inputs, positions, scored, inputs["input_ids"][completion] if self._labelled else None)

    def inputs(self) -> Iterable[Tensor]:
        """See `Examples.inputs`."""
        yield from self._tokens.tensors()
        yield self._completion.values


def refuse_label_among_inputs(label: str | None, columns: Sequence[str], where: str, *, templated: bool) -> None:
    """A language model's inputs may not hold what is declared to be the label.

    Raises:
        ConfigError: They do.
    """
    if label in columns and templated:
        raise ConfigError(
            f"{where}.template uses the column {label!r}, which {where}.label declares to be the label. A label is "
            "never shown to a model; leave `label` out if this column is text that the model should complete."
        )
    if label in columns:
        raise ConfigError(f"{where}.label is {label!r}, which is also the column of the input.")
