"""One task's calibration data: its rows read, taken once each, divided by content, encoded; what is left out is noted.

    loader = TaskLoader(reader, "sequence-classification", frozenset({"report"}), None, ())
    data = loader.load(SplitsConfig(), folder, limit=None)
    data.splits["fit"].size, loader.notes

`optmerge.calibration.data` loads all tasks of a search.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optmerge.calibration.batches import Split
from optmerge.calibration.reader import Reader
from optmerge.calibration.rows import Rows
from optmerge.calibration.sampling import Embedder, choose
from optmerge.calibration.sources import read_rows
from optmerge.calibration.splits import allocate, content_key, split_sizes
from optmerge.config.sampling import DiverseConfig
from optmerge.config.tasks import SplitsConfig
from optmerge.errors import ConfigError, DataError, did_you_mean
from optmerge.models.architecture import Kind
from optmerge.records import SplitName

_BLOCK = 1024  # rows encoded at a time


@dataclass(frozen=True)
class TaskData:
    """One task's calibration data.

    Attributes:
        name: The task.
        expert: Whose behaviour is to be kept on it.
        kind: What the expert is.
        splits: fit, select and report.
        num_labels: Classes of the expert's head; None where the classes are a vocabulary.
        sha256: Hash of all that is kept: inputs, splits and labels.
        labelled: The examples of fit with their labels, for methods whose statistics are of labels; None without one.
            What is judged on fit does not see it.
    """

    name: str
    expert: str
    kind: Kind
    splits: dict[SplitName, Split]
    num_labels: int | None
    sha256: str
    labelled: Split | None = None


@dataclass(frozen=True)
class _Document:
    """A row that holds something: its inputs, and its label where one was read."""

    key: str
    raw: Any
    number: int
    label: Any = None


@dataclass(frozen=True)
class _Example:
    """An encoded example and the row that it comes from."""

    key: str
    encoded: Any
    document: _Document


class TaskLoader:
    """Loads one task of any kind, and notes what it leaves out."""

    def __init__(
        self,
        reader: Reader[Any, Any],
        kind: Kind,
        keep_labels: frozenset[SplitName],
        embed: Embedder | None,
        label_readers: Sequence[str],
    ) -> None:
        self.reader, self.kind, self.keep_labels, self.embed = reader, kind, keep_labels, embed
        self.methods = " and ".join(label_readers)
        self.name, self.spec, self.where = reader.task.name, reader.task.spec, reader.where
        self.notes: list[str] = []
        self.unusable = 0

    def load(self, splits: SplitsConfig, relative_to: Path, limit: int | None) -> TaskData:
        """Read, encode, divide and label, in this order."""
        by_column = self.reader.truth_from == "label"
        if by_column and self.spec.label is None and (who := self._who_reads()):
            raise DataError(
                f"{self.where}.label: missing; {who}. Name the column that holds them, or {self._instead()}."
            )
        may_label = by_column and self.spec.label is not None and bool(self.keep_labels or self.methods)
        wanted = {*self.reader.columns, self.spec.label} if may_label and self.spec.label else set(self.reader.columns)
        try:
            rows = read_rows(self.spec.data, wanted, relative_to=relative_to)
        except DataError as problem:
            raise DataError(f"{self.where}.data: {problem}") from None
        self._check_columns(rows)
        labelled = may_label and self._has_labels(rows)
        documents = self._unique(self._documents(rows, labelled))
        sizes, parts = self._divide(documents, splits)
        self._check_sizes(splits, sizes, len(documents), sum(map(len, parts.values())))
        parts = {name: part[:limit] for name, part in parts.items()}
        if splits.transductive:
            parts["report"] = parts["select"] + parts["fit"]
        made: dict[SplitName, Split] = {
            split: self._split(split, parts[split], rows, labelled, keep=split in self.keep_labels)
            for split in ("fit", "select", "report")
        }
        facts = [[split.name, split.keys, split.sha256, split.labels_sha256] for split in made.values()]
        sha256 = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        own = self._split("fit", parts["fit"], rows, labelled, keep=True) if self.methods else None
        return TaskData(self.name, self.spec.expert, self.kind, made, self.reader.classes, sha256, own)

    def _who_reads(self) -> str:
        """That something cannot do without labels; empty if nothing."""
        if self.keep_labels - {"report"}:
            return "the objective reads labels"
        if " and " in self.methods:
            return f"the methods {self.methods} read labels"
        return self.methods and f"the method {self.methods} reads labels"

    def _instead(self) -> str:
        if self.keep_labels - {"report"}:
            return "use an objective without labels, such as expert-kl"
        return "use methods without labels, such as fisher"

    def _check_columns(self, rows: Rows) -> None:
        if not rows.numbers:
            raise DataError(f"{self.where}.data: {rows.source} holds no rows.")
        for column in self.reader.columns:
            if column not in rows.available:
                raise DataError(
                    f"{self.where}: {rows.source} has no column {column!r}; its columns are "
                    f"{', '.join(map(repr, rows.available))}.{did_you_mean(column, rows.available)} "
                    f"Set {self.reader.settings} to a column that exists."
                )

    def _has_labels(self, rows: Rows) -> bool:
        """Whether the label column is there; if not, what is of labels cannot go on."""
        label = self.spec.label
        if label in rows.available:
            dropped = [split for split in ("fit", "select", "report") if split not in self.keep_labels]
            if dropped:
                self.notes.append(
                    f"{self.name}: the label column {label!r} is dropped from {' and '.join(dropped)}; no objective "
                    "that is searched can see it."
                )
            if self.methods:
                self.notes.append(f"{self.name}: the labels of fit are read by {self.methods}.")
            return True
        if who := self._who_reads():
            raise DataError(
                f"{self.where}: {who}, and {rows.source} has no column {label!r}; its "
                f"columns are {', '.join(map(repr, rows.available))}.{did_you_mean(str(label), rows.available)} "
                f"Set `label` to a column that exists, or {self._instead()}."
            )
        self.notes.append(
            f"{self.name}: there is no label column {label!r}; the report shows agreement with the expert."
        )
        return False

    def _documents(self, rows: Rows, labelled: bool) -> list[_Document]:
        """Every row that holds something. Only a row's inputs enter its key."""
        documents = []
        count = len(rows.numbers)
        labels = rows.columns[self.spec.label] if labelled and self.spec.label else [None] * count
        for place, (number, label) in enumerate(zip(rows.numbers, labels, strict=True)):
            values = {column: rows.columns[column][place] for column in self.reader.columns}
            raw = self.reader.raw(values, self._row(rows, number))
            if raw is not None:
                documents.append(_Document(self.reader.key(raw), raw, number, label))
        empty = count - len(documents)
        if not documents:
            raise DataError(
                f"{self.where}: {rows.source} has {count} rows, and the {self.reader.content} of every one is empty."
            )
        if empty:
            self.notes.append(f"{self.name}: {empty} of {count} rows have no {self.reader.holding} and are left out.")
        return documents

    def _row(self, rows: Rows, number: int) -> str:
        return f"{self.where}: {rows.source}, row {number}"

    def _unique(self, documents: list[_Document]) -> list[_Document]:
        """One document per content, by key; of several labels the least, whatever the order of the file."""
        ordered = sorted(documents, key=lambda document: (document.key, str(document.label), document.number))
        unique: list[_Document] = []
        contradicting = set()
        for document in ordered:
            if not unique or unique[-1].key != document.key:
                unique.append(document)
            elif str(unique[-1].label) != str(document.label):
                contradicting.add(document.key)
        if len(unique) < len(documents):
            self.notes.append(f"{self.name}: {len(documents) - len(unique)} exact duplicates are left out.")
        if contradicting:
            self.notes.append(
                f"{self.name}: {len(contradicting)} {self.reader.holding}s occur with more than one label."
            )
        return unique

    def _divide(
        self, documents: Sequence[_Document], splits: SplitsConfig
    ) -> tuple[dict[SplitName, int], dict[SplitName, list[_Example]]]:
        """The size of every split, and its examples."""
        found: Iterable[list[_Example]]
        if self.reader.divides:  # a share is of examples, and only encoding tells how many there are
            found = list(self._encoded(documents, None))
            sizes = split_sizes(splits, sum(map(len, found)))
            taken = self._to_take(sizes)
        else:
            sizes = split_sizes(splits, len(documents))
            taken = self._to_take(sizes)
            found = self._encoded(documents, sum(taken.values()))
        parts = allocate(found, taken)
        if taken != sizes:
            parts = self._drawn(parts, sizes)
        if self.unusable:
            what = self.reader.unusable.format(max_tokens=self.spec.max_tokens)
            self.notes.append(f"{self.name}: {self.unusable} examples {what} and are left out.")
        return sizes, parts

    def _to_take(self, sizes: Mapping[SplitName, int]) -> dict[SplitName, int]:
        """How many examples go where at first: a pool has them in the place of fit, and select waits."""
        sampling = self.spec.sampling
        if not isinstance(sampling, DiverseConfig):
            return dict(sizes)
        need = sizes["fit"] + sizes["select"]
        if sampling.pool < need:
            raise ConfigError(
                f"{self.where}.sampling.pool is {sampling.pool}, and fit and select choose {need} examples from it. "
                "Give it several times as many."
            )
        if self.embed is None:
            return dict(sizes)
        return {**sizes, "select": 0, "fit": sampling.pool}

    def _drawn(
        self, parts: dict[SplitName, list[_Example]], sizes: Mapping[SplitName, int]
    ) -> dict[SplitName, list[_Example]]:
        """The parts with fit and select drawn from the pool that stands in the place of fit."""
        sampling, pool = self.spec.sampling, parts["fit"]
        assert isinstance(sampling, DiverseConfig)
        assert self.embed is not None
        if len(pool) < sizes["fit"] + sizes["select"]:
            return parts  # too few for any choice, as will be said
        unlabelled = self.reader.examples([one.encoded for one in pool], None, labelled=False)
        split = Split("fit", [one.key for one in pool], unlabelled)
        chosen = choose(self.embed, self.name, split, [one.document.key for one in pool], sampling, sizes)
        alike = f", {chosen.duplicates} of them near-duplicates" if chosen.duplicates else ""
        self.notes.append(
            f"{self.name}: fit and select are {sizes['fit']} and {sizes['select']} representatives of {len(pool)} "
            f"examples{alike}."
        )
        return parts | {name: [pool[place] for place in places] for name, places in chosen.positions.items()}

    def _encoded(self, documents: Sequence[_Document], need: int | None) -> Iterator[list[_Example]]:
        """The examples of every document, of which no more than ``need`` will be wanted."""
        begin = have = 0
        while begin < len(documents):
            block = documents[begin : begin + (_BLOCK if need is None else max(1, min(_BLOCK, need - have)))]
            begin += len(block)
            for document, found in zip(block, self.reader.encode([one.raw for one in block]), strict=True):
                have += len(found)
                self.unusable += not found
                several = len(found) > 1
                keys = [content_key(document.key, str(i)) if several else document.key for i in range(len(found))]
                yield [_Example(key, one, document) for key, one in zip(keys, found, strict=True)]

    def _check_sizes(self, splits: SplitsConfig, sizes: Mapping[SplitName, int], documents: int, have: int) -> None:
        need = sum(sizes.values())
        if have >= need and all(sizes.values()):
            return
        left_out = [note.removeprefix(f"{self.name}: ").removesuffix(".") for note in self.notes if "left out" in note]
        why = f" ({'; '.join(left_out)})" if left_out else ""
        if have >= need:
            empty = next(name for name in sizes if not sizes[name])
            raise DataError(
                f"{self.where}: splits.{empty} is {getattr(splits, empty)}, which is no example at all of the "
                f"{documents} in {self.spec.data}{why}. Give a count, or a larger share."
            )
        wanted = ", ".join(f"{name} {sizes[name]}" for name in ("fit", "select", "report") if name in sizes)
        largest = max(sizes, key=lambda name: sizes[name])
        room = sizes[largest] - (need - have)
        fix = (
            f"Lower splits.{largest} to {room} or less"
            if room > 0
            else "Lower splits (shares such as 0.2 adapt to the data)"
        )
        raise DataError(
            f"{self.where}: the splits need {need} examples ({wanted}) and {self.spec.data} has {have} distinct "
            f"usable ones{why}. {fix}, or give the task more data."
        )

    def _split(self, name: SplitName, part: Sequence[_Example], rows: Rows, labelled: bool, *, keep: bool) -> Split:
        """A split, with labels where they were read (``labelled``) and it may keep them."""
        labels = None
        if labelled and keep:
            names = rows.class_names.get(self.spec.label or "", [])
            labels = [
                self.reader.label(one.document.label, one.encoded, names, self._row(rows, one.document.number))
                for one in part
            ]
        has_labels = labels is not None or (self.reader.truth_from == "inputs" and keep)
        examples = self.reader.examples([one.encoded for one in part], labels, labelled=has_labels)
        return Split(name, [one.key for one in part], examples, has_labels=has_labels)
