"""What a kind of model knows about its data: which columns it wants, and how rows become encoded examples.

    reader = READERS["causal-lm"](Task("chat", spec, config, tokenizer))      # see `optmerge.calibration.kinds`
    raw = reader.raw({"text": "a good film"}, "films.jsonl, row 1")           # None: the row holds nothing
    reader.encode([raw])                                                      # [[encoded]]
    examples = reader.examples([encoded], None)

The loader knows no kind, and a reader knows nothing of splits. Encoding sees a row's inputs and never its label.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from optmerge.calibration.batches import Examples
from optmerge.config.tasks import TaskConfig
from optmerge.errors import ConfigError, DataError
from optmerge.models.architecture import Kind
from optmerge.models.image_processor import ImageProcessor

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

_OPTIONAL = {
    "text_pair": "sequence classifiers",
    "template": "language models",
    "stride": "causal language models",
    "pack": "causal language models",
    "classes": "image classifiers with zero-shot heads",
}
_CALLED: dict[Kind, str] = {
    "causal-lm": "causal language models",
    "seq2seq-lm": "sequence-to-sequence models",
    "sequence-classification": "sequence classifiers",
    "token-classification": "token classifiers",
    "image-classification": "image classifiers",
    "zero-shot-image-classification": "image classifiers with zero-shot heads",
}

Raw = TypeVar("Raw")
Encoded = TypeVar("Encoded")


@dataclass(frozen=True)
class Task:
    """What a reader is made for.

    Attributes:
        name: The task's name.
        spec: Its settings.
        config: Of the task's expert.
        reads: The tokenizer of the search, or for models of images its image processor.
        folder: What the path of its data is relative to.
    """

    name: str
    spec: TaskConfig
    config: PreTrainedConfig
    reads: PreTrainedTokenizerBase | ImageProcessor
    folder: Path = Path()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, for kinds that read text."""
        assert not isinstance(self.reads, ImageProcessor)
        return self.reads

    @property
    def images(self) -> ImageProcessor:
        """The image processor, for kinds that see images."""
        assert isinstance(self.reads, ImageProcessor)
        return self.reads


class Reader(ABC, Generic[Raw, Encoded]):
    """Reads one task's rows; a subclass per kind of model.

    Attributes:
        kind: What it reads for.
        takes: The settings of a task that mean something to this kind, of those that do not to every one.
        truth_from: ``label``: the truth stands in the label column; ``inputs``: it is part of the inputs (a language
            model's completion), and the label column is never read.
        settings: The settings that choose the columns, as a message names them.
        holding: What a row holds, as messages name it ("text").
        unusable: What is wrong with examples that `encode` gives nothing for, after "n examples".
        task: What it was made for.
        columns: The columns of the inputs.
        content: What must not be empty in a row, as a message names it.
        classes: Size of the expert's head; None where the classes are a vocabulary.
        divides: Whether a row may become several examples.
    """

    kind: ClassVar[Kind]
    takes: ClassVar[frozenset[str]] = frozenset()
    truth_from: ClassVar[Literal["label", "inputs"]]
    settings: ClassVar[str]
    holding: ClassVar[str] = "text"
    unusable: ClassVar[str]

    def __init__(self, task: Task, columns: Sequence[str], content: str, *, classes: int | None) -> None:
        self.task = task
        self.columns = tuple(dict.fromkeys(columns))
        self.content = content
        self.classes = classes
        self.divides = False
        for setting, owners in _OPTIONAL.items():
            if setting not in self.takes and getattr(task.spec, setting):
                raise ConfigError(
                    f"{self.where}.{setting} is for {owners}, and the experts are {_CALLED[self.kind]}. Leave it out."
                )
        if self.truth_from == "label" and task.spec.label in self.columns:
            raise ConfigError(f"{self.where}.label is {task.spec.label!r}, which is also a column of the input.")

    @property
    def where(self) -> str:
        """The task, as messages about its settings begin."""
        return f"tasks.{self.task.name}"

    def refuse_label_in_template(self) -> None:
        """A template may not show a model what is declared to be the label.

        Raises:
            ConfigError: It does.
        """
        label = self.task.spec.label
        if label in self.columns:
            raise ConfigError(
                f"{self.where}.template uses the column {label!r}, which {self.where}.label declares to be the label. "
                "A label is never shown to a model; leave `label` out if this column is text that the model should "
                "complete."
            )

    @abstractmethod
    def raw(self, values: Mapping[str, Any], where: str) -> Raw | None:
        """The inputs in a row, checked; None if there are none.

        Args:
            values: Column -> value, for `columns`.
            where: The row, for messages.

        Raises:
            DataError: A value is of a type that cannot be read.
        """

    @abstractmethod
    def key(self, raw: Raw) -> str:
        """The hash of the content (`content_key`): equal for equal inputs, whatever their label or place."""

    @abstractmethod
    def encode(self, raws: Sequence[Raw]) -> list[list[Encoded]]:
        """The examples that each row becomes: one, several (see `divides`), or none, if there is nothing to score."""

    def label(self, value: Any, encoded: Encoded, names: Sequence[str], where: str) -> list[int]:
        """The true classes of an example's predictions, by the value of its label column.

        Args:
            value: As the data has it.
            encoded: The example.
            names: Names of the classes, where the data set itself knows them.
            where: The row, for messages.

        Raises:
            DataError: The value is missing, or means no class of the head.
        """
        raise NotImplementedError("this kind reads no label column")

    @abstractmethod
    def examples(self, encoded: Sequence[Encoded], labels: Sequence[list[int]] | None, *, labelled: bool) -> Examples:
        """What a split keeps.

        Args:
            encoded: Its examples.
            labels: The true classes of each example's predictions, where they come from a column and may be read.
            labelled: Whether batches may have targets.
        """


def as_text(value: object, column: str, where: str) -> str:
    """A cell as text; an empty one is ``""``.

    Raises:
        DataError: It is neither text nor a number.
    """
    if value is None:
        return ""
    if isinstance(value, str | int | float):
        return str(value)
    raise DataError(f"{where}: column {column!r} holds a {type(value).__name__}; expected text.")
