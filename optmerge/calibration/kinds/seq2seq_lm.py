"""Inputs and answers for sequence-to-sequence models: the prompt goes to the encoder, the completion to the decoder.

spec = TaskConfig(expert="de", data="pairs.jsonl", template={"prompt": "translate: {en}", "completion": "{de}"})
reader = Seq2SeqReader(Task("german", spec, config, tokenizer))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from optmerge.calibration.batches import Batch, Examples
from optmerge.calibration.encode import EncodedText, encode_texts, token_limit
from optmerge.calibration.ragged import Ragged
from optmerge.calibration.reader import Reader, Task, as_text
from optmerge.calibration.splits import content_key
from optmerge.calibration.template import PromptTemplate
from optmerge.calibration.tokens import Tokens
from optmerge.config.tasks import TemplateConfig
from optmerge.errors import ConfigError
from optmerge.models.architecture import Kind


@dataclass(frozen=True)
class Answered:
    """A tokenised example.

    Attributes:
        source: What the encoder reads.
        target: What the decoder should write, its end token included.
    """

    source: EncodedText
    target: list[int]


class Seq2SeqReader(Reader[tuple[str, str], Answered]):
    """Fills a template from a row's columns."""

    kind: ClassVar[Kind] = "seq2seq-lm"
    takes: ClassVar[frozenset[str]] = frozenset({"template"})
    truth_from: ClassVar[Literal["label", "inputs"]] = "inputs"
    settings: ClassVar[str] = "`template`"
    unusable: ClassVar[str] = "have no completion token"

    def __init__(self, task: Task) -> None:
        template, where = task.spec.template, f"tasks.{task.name}"
        if not isinstance(template, TemplateConfig) or not template.prompt or template.chat:
            raise ConfigError(
                f"{where}.template: the experts are sequence-to-sequence models, which need an input and an answer. "
                'Set template: {prompt: "...", completion: "..."}, with columns such as {question} in both.'
            )
        parsed = PromptTemplate.of(template, where=where)
        assert parsed is not None
        self._template = parsed
        super().__init__(task, parsed.columns, "completion", classes=None)
        self.refuse_label_in_template()
        config = task.config
        starts = (getattr(config, name, None) for name in ("decoder_start_token_id", "bos_token_id"))
        start = next((token for token in starts if isinstance(token, int)), None)
        if start is None:
            raise ConfigError(
                f"{where}: the config of the expert {task.spec.expert!r} names no decoder_start_token_id, so nobody "
                "knows what its decoder begins with. Add it to the expert's config.json (a T5's is its padding token)."
            )
        self._start = start

    def raw(self, values: Mapping[str, Any], where: str) -> tuple[str, str] | None:
        """See `Reader.raw`."""
        row = {column: as_text(values[column], column, where) for column in self.columns}
        prompt, completion = self._template.fill(row)
        return (prompt, completion) if completion.strip() else None

    def key(self, raw: tuple[str, str]) -> str:
        """See `Reader.key`."""
        return content_key(*raw)

    def encode(self, raws: Sequence[tuple[str, str]]) -> list[list[Answered]]:
        """See `Reader.encode`."""
        tokenizer, most = self.task.tokenizer, self.task.spec.max_tokens
        sources = encode_texts(tokenizer, [prompt for prompt, _ in raws], [None] * len(raws), max_tokens=most)
        targets = tokenizer(
            text_target=[completion for _, completion in raws],
            truncation=True,
            max_length=token_limit(tokenizer, most),
            padding=False,
        )["input_ids"]
        pairs = zip(sources, targets, strict=True)
        return [[Answered(source, target)] if target else [] for source, target in pairs]

    def examples(self, encoded: Sequence[Answered], labels: Sequence[list[int]] | None, *, labelled: bool) -> Examples:
        """See `Reader.examples`."""
        sources = Tokens([one.source for one in encoded], self.task.tokenizer)
        return Answers(sources, Ragged([one.target for one in encoded], torch.int32), self._start, labelled=labelled)


class Answers(Examples):
    """Tokenised inputs with their answers, every token of which is scored.

    Args:
        sources: The n inputs.
        targets: The n answers.
        start: What the decoder begins with.
        labelled: Whether batches have targets: the answers themselves.
    """

    def __init__(self, sources: Tokens, targets: Ragged, start: int, *, labelled: bool) -> None:
        self.lengths = torch.stack([sources.lengths, targets.lengths], 1)
        self._sources = sources
        self._targets = targets
        self._start = start
        self._labelled = labelled

    def collate(self, positions: Tensor) -> Batch:
        """See `Examples.collate`."""
        scored = self._targets.present(positions)
        wanted = self._targets.padded(positions, self._sources.filling)
        given = torch.cat([torch.full((len(positions), 1), self._start), wanted[:, :-1]], 1)
        inputs = {
            **self._sources.collate(positions),
            "decoder_input_ids": given.masked_fill(~scored, self._sources.filling),
            "decoder_attention_mask": scored.long(),
        }
        return Batch(inputs, positions, scored, wanted[scored] if self._labelled else None)

    def inputs(self) -> Iterable[Tensor]:
        """See `Examples.inputs`."""
        yield from self._sources.tensors()
        yield self._targets.lengths
        yield self._targets.values
        yield torch.tensor([self._start])
