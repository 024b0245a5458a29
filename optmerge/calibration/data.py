"""Calibration data of a search: every task's examples, split by content, tokenised, with labels only where allowed.

    calibration = load_calibration(config.tasks, config.splits, tokenizer=tokenizer, kind="sequence-classification",
                                   label_maps=label_maps, relative_to=folder, keep_labels=frozenset({"report"}))
    for batch in calibration.tasks["topic"].splits["fit"].batches(batch_tokens=4096): ...

The order of the work is what keeps labels out of reach: a label column is not even read unless a split may keep it, and
the splits that may not lose it before anything is tokenised. For language models the truth is the completion itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from optmerge.calibration.batches import Batch, Padding, Split
from optmerge.calibration.encode import EncodedText, encode_completions, encode_texts
from optmerge.calibration.labels import label_index
from optmerge.calibration.sources import Rows, read_rows
from optmerge.calibration.splits import ORDER, allocate, content_key, split_sizes
from optmerge.calibration.template import Template
from optmerge.config.schema import SplitsConfig, TaskConfig
from optmerge.errors import ConfigError, DataError, did_you_mean
from optmerge.records import SplitName

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Batch", "Calibration", "Kind", "Split", "TaskData", "load_calibration"]

Kind = Literal["causal-lm", "sequence-classification"]
_BLOCK = 1024  # examples tokenised at a time


@dataclass(frozen=True)
class TaskData:
    """One task's calibration data.

    Attributes:
        name: The task.
        expert: Whose behaviour is to be kept on it.
        kind: What the expert is.
        splits: fit, select and report.
        num_labels: Classes of the expert's head; None for language models.
        sha256: Hash of all that is kept: token ids, splits and labels.
    """

    name: str
    expert: str
    kind: Kind
    splits: dict[SplitName, Split]
    num_labels: int | None
    sha256: str


@dataclass(frozen=True)
class Calibration:
    """The calibration data of every task.

    Attributes:
        tasks: Task -> its data, in the search file's order.
        notes: What was left out and why, one sentence each, for the user to read.
    """

    tasks: dict[str, TaskData]
    notes: list[str] = field(default_factory=list)

    def fingerprint(self) -> str:
        """Hash of every task's name, expert and data."""
        facts = [[task.name, task.expert, task.sha256] for task in self.tasks.values()]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def fit_sizes(self) -> dict[str, int]:
        """Task -> number of examples in its fit split."""
        return {name: task.splits["fit"].size for name, task in self.tasks.items()}


@dataclass(frozen=True)
class _Example:
    """A row before it is tokenised: (text, second text) or (prompt, completion)."""

    key: str
    first: str
    second: str | None
    number: int
    label: Any = None


def load_calibration(
    tasks: Mapping[str, TaskConfig],
    splits: SplitsConfig,
    *,
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind,
    label_maps: Mapping[str, Mapping[str, int]],
    relative_to: Path,
    keep_labels: frozenset[SplitName] = frozenset(),
    limit: int | None = None,
) -> Calibration:
    """Read, split and tokenise the data of every task.

    Args:
        tasks: Task -> its settings.
        splits: Sizes of the splits, the same for every task.
        tokenizer: Tokenises all tasks.
        kind: What the experts are.
        label_maps: Task -> its expert's ``label2id`` (classifiers).
        relative_to: Where relative paths start.
        keep_labels: Splits whose labels may be read. With fit or select among them, labels must be there.
        limit: Keep only the first this many examples of each split.

    Raises:
        DataError: Data is missing, damaged, empty, too small, or has unknown labels.
        ConfigError: A task's settings contradict each other or the experts' kind.
    """
    loaded: dict[str, TaskData] = {}
    notes: list[str] = []
    for name, spec in tasks.items():
        loader = _TaskLoader(name, spec, kind, tokenizer, keep_labels, label_maps.get(name, {}))
        loaded[name] = loader.load(splits, relative_to, limit)
        notes += loader.notes
    return Calibration(loaded, notes)


class _TaskLoader:
    """Loads one task, and notes what it leaves out."""

    def __init__(
        self,
        name: str,
        spec: TaskConfig,
        kind: Kind,
        tokenizer: PreTrainedTokenizerBase,
        keep_labels: frozenset[SplitName],
        label_map: Mapping[str, int],
    ) -> None:
        self.name, self.spec, self.kind = name, spec, kind
        self.tokenizer, self.keep_labels, self.label_map = tokenizer, keep_labels, label_map
        self.notes: list[str] = []
        self.columns, self._texts_of = self._shape()

    def load(self, splits: SplitsConfig, relative_to: Path, limit: int | None) -> TaskData:
        """Read, drop, split, label and tokenise, in this order."""
        if self.kind == "sequence-classification" and self.spec.label is None and self.keep_labels - {"report"}:
            raise DataError(
                f"tasks.{self.name}.label: missing; the objective reads labels. Name the column that holds them, or "
                "use an objective without labels, such as expert-kl."
            )
        may_label = self.kind == "sequence-classification" and self.spec.label is not None and bool(self.keep_labels)
        wanted = {*self.columns, self.spec.label} if may_label and self.spec.label else set(self.columns)
        try:
            rows = read_rows(self.spec.data, wanted, relative_to=relative_to)
        except DataError as problem:
            raise DataError(f"tasks.{self.name}.data: {problem}") from None
        self._check_columns(rows)
        labelled = may_label and self._has_labels(rows)
        examples = self._unique(self._examples(rows, labelled))
        sizes = split_sizes(splits, len(examples))
        if labelled:
            examples = self._forget(examples, sizes)
        encoded = self._encode(examples, sum(sizes.values()))
        self._check_sizes(splits, sizes, examples, encoded)
        parts = allocate(encoded, sizes)
        num_labels = max(self.label_map.values(), default=-1) + 1 if self.kind == "sequence-classification" else None
        made: dict[SplitName, Split] = {
            split: self._split(split, parts[split][:limit], rows, labelled, num_labels)
            for split in ("fit", "select", "report")
        }
        facts = [[split.name, split.keys, split.sha256, split.labels_sha256] for split in made.values()]
        sha256 = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        return TaskData(self.name, self.spec.expert, self.kind, made, num_labels, sha256)

    def _shape(self) -> tuple[tuple[str, ...], Callable[[Mapping[str, str]], tuple[str, str | None]]]:
        """The columns with text, and how a row of them becomes the two texts of an example."""
        spec, where = self.spec, f"tasks.{self.name}"
        if self.kind == "sequence-classification":
            if spec.template is not None:
                raise ConfigError(f"{where}.template is for language models; the experts are classifiers, so use text.")
            pair = spec.text_pair
            columns: tuple[str, ...] = (spec.text,) if pair is None else (spec.text, pair)
            if spec.label in columns:
                raise ConfigError(f"{where}.label is {spec.label!r}, which is also a column of the input.")
            return columns, lambda row: (row[spec.text], None if pair is None else row[pair])
        if spec.text_pair is not None:
            raise ConfigError(
                f"{where}.text_pair is for classifiers; the experts are language models, so use template."
            )
        if spec.template is None:
            if spec.label == spec.text:
                raise ConfigError(f"{where}.label is {spec.label!r}, which is also the column of the input.")
            return (spec.text,), lambda row: ("", row[spec.text])
        prompt = Template.parse(spec.template.prompt, where=f"{where}.template.prompt")
        completion = Template.parse(spec.template.completion, where=f"{where}.template.completion")
        columns = tuple(dict.fromkeys(prompt.columns + completion.columns))
        if spec.label in columns:
            raise ConfigError(
                f"{where}.template uses the column {spec.label!r}, which {where}.label declares "
                "to be the label. A label is never shown to a model; leave `label` out if this column is text that the "
                "model should complete."
            )
        return columns, lambda row: (prompt.fill(row), completion.fill(row))

    def _check_columns(self, rows: Rows) -> None:
        if not rows.numbers:
            raise DataError(f"tasks.{self.name}.data: {rows.source} holds no rows.")
        for column in self.columns:
            if column not in rows.available:
                raise DataError(
                    f"tasks.{self.name}: {rows.source} has no column {column!r}; its columns are "
                    f"{', '.join(map(repr, rows.available))}.{did_you_mean(column, rows.available)} "
                    "Set `text` (or `text_pair`, or `template`) to a column that exists."
                )

    def _has_labels(self, rows: Rows) -> bool:
        """Whether the label column is there; if not, a labelled objective cannot go on."""
        label = self.spec.label
        if label in rows.available:
            dropped = [split for split in ("fit", "select", "report") if split not in self.keep_labels]
            if dropped:
                self.notes.append(
                    f"{self.name}: the label column {label!r} is dropped from {' and '.join(dropped)}; no objective "
                    "that is searched can see it."
                )
            return True
        if self.keep_labels - {"report"}:
            raise DataError(
                f"tasks.{self.name}: the objective reads labels, and {rows.source} has no column {label!r}; its "
                f"columns are {', '.join(map(repr, rows.available))}.{did_you_mean(str(label), rows.available)} "
                "Set `label` to a column that exists, or use an objective without labels, such as expert-kl."
            )
        self.notes.append(
            f"{self.name}: there is no label column {label!r}; the report shows agreement with the expert."
        )
        return False

    def _examples(self, rows: Rows, labelled: bool) -> list[_Example]:
        """Every row with text. Only a row's texts enter its key."""
        examples = []
        count = len(rows.numbers)
        labels = rows.columns[self.spec.label] if labelled and self.spec.label else [None] * count
        for place, (number, label) in enumerate(zip(rows.numbers, labels, strict=True)):
            values = {
                column: self._as_text(rows.columns[column][place], column, f"{rows.source}, row {number}")
                for column in self.columns
            }
            first, second = self._texts_of(values)
            if (second or "").strip() if self.kind == "causal-lm" else first.strip():
                examples.append(_Example(content_key(first, second), first, second, number, label))
        empty = count - len(examples)
        if not examples:
            what = "completion" if self.spec.template else f"text in column {self.columns[0]!r}"
            raise DataError(f"tasks.{self.name}: {rows.source} has {count} rows, and the {what} of every one is empty.")
        if empty:
            self.notes.append(f"{self.name}: {empty} of {count} rows have no text and are left out.")
        return examples

    def _as_text(self, value: object, column: str, where: str) -> str:
        if value is None:
            return ""
        if isinstance(value, str | int | float):
            return str(value)
        raise DataError(f"tasks.{self.name}: {where}: column {column!r} holds a {type(value).__name__}; expected text.")

    def _unique(self, examples: list[_Example]) -> list[_Example]:
        """One example per text, in the order of the keys; of several labels the least, whatever the file's order."""
        ordered = sorted(examples, key=lambda example: (example.key, str(example.label), example.number))
        unique: list[_Example] = []
        contradicting = set()
        for example in ordered:
            if not unique or unique[-1].key != example.key:
                unique.append(example)
            elif str(unique[-1].label) != str(example.label):
                contradicting.add(example.key)
        if len(unique) < len(examples):
            self.notes.append(f"{self.name}: {len(examples) - len(unique)} exact duplicates are left out.")
        if contradicting:
            self.notes.append(f"{self.name}: {len(contradicting)} texts occur with more than one label.")
        return unique

    def _forget(self, examples: Sequence[_Example], sizes: Mapping[SplitName, int]) -> list[_Example]:
        """Drop the labels of every split that may not keep them, and of what no split takes."""
        kept: list[_Example] = []
        for split, part in allocate(examples, sizes).items():
            kept += part if split in self.keep_labels else [replace(example, label=None) for example in part]
        return kept + [replace(example, label=None) for example in examples[len(kept) :]]

    def _encode(self, examples: Sequence[_Example], need: int) -> list[tuple[_Example, EncodedText]]:
        """The first ``need`` usable examples, tokenised; those without a token to score are passed over."""
        usable: list[tuple[_Example, EncodedText]] = []
        unscored = 0
        begin = 0
        while begin < len(examples) and len(usable) < need:
            block = examples[begin : begin + min(_BLOCK, need - len(usable))]
            begin += len(block)
            firsts, seconds = [example.first for example in block], [example.second for example in block]
            if self.kind == "causal-lm":
                completions = [second or "" for second in seconds]
                encoded = encode_completions(self.tokenizer, firsts, completions, max_tokens=self.spec.max_tokens)
            else:
                encoded = encode_texts(self.tokenizer, firsts, seconds, max_tokens=self.spec.max_tokens)
            usable += [(example, text) for example, text in zip(block, encoded, strict=True) if text.usable]
            unscored += sum(not text.usable for text in encoded)
        if unscored:
            self.notes.append(
                f"{self.name}: {unscored} examples have no completion token within max_tokens = {self.spec.max_tokens} "
                "and are left out."
            )
        return usable

    def _check_sizes(
        self,
        splits: SplitsConfig,
        sizes: Mapping[SplitName, int],
        examples: Sequence[_Example],
        encoded: Sequence[tuple[_Example, EncodedText]],
    ) -> None:
        need, have = sum(sizes.values()), len(encoded)
        if have >= need and all(sizes.values()):
            return
        left_out = [note.removeprefix(f"{self.name}: ").removesuffix(".") for note in self.notes if "left out" in note]
        why = f" ({'; '.join(left_out)})" if left_out else ""
        if have >= need:
            empty = next(name for name in ORDER if not sizes[name])
            raise DataError(
                f"tasks.{self.name}: splits.{empty} is {getattr(splits, empty)}, which is no example at all of the "
                f"{len(examples)} in {self.spec.data}{why}. Give a count, or a larger share."
            )
        wanted = ", ".join(f"{name} {sizes[name]}" for name in ("fit", "select", "report"))
        largest = max(ORDER, key=lambda name: sizes[name])
        room = sizes[largest] - (need - have)
        fix = (
            f"Lower splits.{largest} to {room} or less"
            if room > 0
            else "Lower splits (shares such as 0.2 adapt to the data)"
        )
        raise DataError(
            f"tasks.{self.name}: the splits need {need} examples ({wanted}) and {self.spec.data} has {have} distinct "
            f"usable ones{why}. {fix}, or give the task more data."
        )

    def _split(
        self,
        name: SplitName,
        part: Sequence[tuple[_Example, EncodedText]],
        rows: Rows,
        labelled: bool,
        num_labels: int | None,
    ) -> Split:
        tokenizer = self.tokenizer
        token = next((int(i) for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
        labels = None
        if labelled and name in self.keep_labels and num_labels is not None:
            labels = [self._label(example, rows, num_labels) for example, _ in part]
        return Split(
            name,
            [example.key for example, _ in part],
            [text for _, text in part],
            padding=Padding(token, int(getattr(tokenizer, "pad_token_type_id", 0) or 0)),
            labels=labels,
            has_labels=labels is not None or (self.kind == "causal-lm" and name in self.keep_labels),
        )

    def _label(self, example: _Example, rows: Rows, num_labels: int) -> int:
        """The example's class; a number with a name in the data set stands for its name where the head knows it."""
        value = example.label
        names = rows.class_names.get(self.spec.label or "", [])
        known = self.label_map if self.spec.labels is None else self.spec.labels
        if isinstance(value, int) and 0 <= value < len(names) and names[value] in known:
            value = names[value]
        where = f"tasks.{self.name}: {rows.source}, row {example.number}"
        if value is None or value == "":
            raise DataError(
                f"{where} has no value in the label column {self.spec.label!r}. Fill it in, or remove the row."
            )
        try:
            return label_index(value, self.label_map, self.spec.labels, classes=num_labels)
        except DataError as problem:
            raise DataError(f"{where}: {problem}") from None
