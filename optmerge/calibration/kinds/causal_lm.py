"""Texts for causal language models: prompts and completions, conversations, or texts that are scored whole.

spec = TaskConfig(expert="chat", data="chat.jsonl", template="chat")
reader = causal_lm_reader(Task("chat", spec, config, tokenizer))
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from optmerge.calibration.batches import Batch, Examples
from optmerge.calibration.chat import ChatTemplate, Conversation, conversation
from optmerge.calibration.encode import EncodedText, cut, encode_completions, token_limit, windows
from optmerge.calibration.kinds.packing import PackedCompletions
from optmerge.calibration.ragged import Ragged
from optmerge.calibration.reader import Raw, Reader, Task, as_text
from optmerge.calibration.splits import content_key
from optmerge.calibration.template import PromptTemplate
from optmerge.calibration.tokens import Tokens
from optmerge.config.tasks import TemplateConfig
from optmerge.errors import ConfigError
from optmerge.models.architecture import Kind


def causal_lm_reader(task: Task) -> Reader[Any, EncodedText]:
    """The reader that the task's template asks for."""
    template = task.spec.template
    chat = template.chat if isinstance(template, TemplateConfig) else template == "chat"
    return ChatReader(task) if chat else TextReader(task)


class CausalLMReader(Reader[Raw, EncodedText]):
    """What all causal language models' readers share: long texts are cut, or become windows; rows may be packed."""

    kind: ClassVar[Kind] = "causal-lm"
    takes: ClassVar[frozenset[str]] = frozenset({"template", "stride", "pack"})
    truth_from: ClassVar[Literal["label", "inputs"]] = "inputs"
    settings: ClassVar[str] = "`text` (or `template`)"
    unusable: ClassVar[str] = "have no completion token within max_tokens = {max_tokens}"

    def __init__(self, task: Task, columns: Sequence[str], content: str) -> None:
        super().__init__(task, columns, content, classes=None)
        spec = task.spec
        self.size = token_limit(task.tokenizer, spec.max_tokens)
        self.divides = spec.stride is not None
        if spec.stride is not None and spec.stride >= self.size:
            raise ConfigError(
                f"{self.where}.stride is {spec.stride}; expected less than the {self.size} tokens of a window, because "
                "a window's first token has nothing before it that could predict it. Half of a window is usual."
            )
        if spec.template is not None:
            self.refuse_label_in_template()
        if spec.label in self.columns:
            raise ConfigError(f"{self.where}.label is {spec.label!r}, which is also the column of the input.")

    @abstractmethod
    def tokens(self, raws: Sequence[Raw]) -> list[EncodedText]:
        """The rows tokenised, whole."""

    def encode(self, raws: Sequence[Raw]) -> list[list[EncodedText]]:
        """See `Reader.encode`."""
        whole = self.tokens(raws)
        if self.task.spec.stride is not None:
            return [windows(text, size=self.size, stride=self.task.spec.stride) for text in whole]
        return [[text] if text.usable else [] for text in (cut(text, self.size) for text in whole)]

    def examples(
        self, encoded: Sequence[EncodedText], labels: Sequence[list[int]] | None, *, labelled: bool
    ) -> Examples:
        """See `Reader.examples`."""
        scored = Ragged([text.completion or [] for text in encoded], torch.bool)
        made = Completions(Tokens(encoded, self.task.tokenizer), scored, labelled=labelled)
        return PackedCompletions(made, width=self.size) if self.task.spec.pack else made


class TextReader(CausalLMReader[tuple[str, str]]):
    """Fills a template from a row's columns, or takes the column ``text``."""

    def __init__(self, task: Task) -> None:
        spec = task.spec
        self._template = PromptTemplate.of(spec.template, where=f"tasks.{task.name}")
        columns: Sequence[str] = (spec.text,) if self._template is None else self._template.columns
        super().__init__(task, columns, f"text in column {spec.text!r}" if self._template is None else "completion")

    def raw(self, values: Mapping[str, Any], where: str) -> tuple[str, str] | None:
        """See `Reader.raw`."""
        row = {column: as_text(values[column], column, where) for column in self.columns}
        prompt, completion = ("", row[self.columns[0]]) if self._template is None else self._template.fill(row)
        return (prompt, completion) if completion.strip() else None

    def key(self, raw: tuple[str, str]) -> str:
        """See `Reader.key`."""
        return content_key(*raw)

    def tokens(self, raws: Sequence[tuple[str, str]]) -> list[EncodedText]:
        """See `CausalLMReader.tokens`."""
        prompts, completions = [prompt for prompt, _ in raws], [completion for _, completion in raws]
        return encode_completions(self.task.tokenizer, prompts, completions)


class ChatReader(CausalLMReader[Conversation]):
    """Reads conversations, or makes one of a prompt and a completion; the tokenizer's chat template renders them."""

    settings: ClassVar[str] = "`messages` (or `template`)"
    unusable: ClassVar[str] = "have no token of the assistant within max_tokens = {max_tokens}"

    def __init__(self, task: Task) -> None:
        spec, where = task.spec, f"tasks.{task.name}"
        self._template = PromptTemplate.of(spec.template, where=where)
        columns: Sequence[str] = (spec.messages,) if self._template is None else self._template.columns
        super().__init__(task, columns, "assistant's text")
        self._chat = ChatTemplate(task.tokenizer, where=where)

    def raw(self, values: Mapping[str, Any], where: str) -> Conversation | None:
        """See `Reader.raw`."""
        if self._template is None:
            messages = conversation(values[self.columns[0]], self.columns[0], where)
        else:
            row = {column: as_text(values[column], column, where) for column in self.columns}
            prompt, completion = self._template.fill(row)
            messages = (("user", prompt), ("assistant", completion))
        return messages if any(role == "assistant" and text.strip() for role, text in messages) else None

    def key(self, raw: Conversation) -> str:
        """See `Reader.key`."""
        return content_key(*(part for message in raw for part in message))

    def tokens(self, raws: Sequence[Conversation]) -> list[EncodedText]:
        """See `CausalLMReader.tokens`."""
        return self._chat.encode(raws)


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
