"""Calibration data of a search: every task's examples, split by content, encoded, with labels only where allowed.

    calibration = load_calibration(config.tasks, config.splits, tokenizer=tokenizer, kind="sequence-classification",
                                   configs=configs, relative_to=folder, keep_labels=frozenset({"report"}))
    for batch in calibration.tasks["topic"].splits["fit"].batches(batch_tokens=4096): ...

What keeps labels out of reach: a label column is not even read unless a split may keep it, encoding is given inputs
alone, and a split that may not have labels is made without. For language models the truth is the completion itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from optmerge.calibration.batches import Batch, Split
from optmerge.calibration.kinds import READERS
from optmerge.calibration.reader import Task
from optmerge.calibration.sampling import Embedder
from optmerge.calibration.task_data import TaskData, TaskLoader
from optmerge.config.tasks import SplitsConfig, TaskConfig
from optmerge.models.architecture import Kind
from optmerge.models.image_processor import ImageProcessor
from optmerge.records import SplitName

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

__all__ = ["Batch", "Calibration", "Kind", "Split", "load_calibration"]


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


def load_calibration(
    tasks: Mapping[str, TaskConfig],
    splits: SplitsConfig,
    *,
    tokenizer: PreTrainedTokenizerBase | ImageProcessor,
    kind: Kind,
    configs: Mapping[str, PreTrainedConfig],
    relative_to: Path,
    keep_labels: frozenset[SplitName] = frozenset(),
    limit: int | None = None,
    embed: Embedder | None = None,
    label_readers: Sequence[str] = (),
) -> Calibration:
    """Read, split and encode the data of every task.

    Args:
        tasks: Task -> its settings.
        splits: Sizes of the splits, the same for every task.
        tokenizer: Tokenises all tasks; for models of images, the image processor that prepares them.
        kind: What the experts are.
        configs: Task -> its expert's config.
        relative_to: Where relative paths start.
        keep_labels: Splits whose labels may be read. With fit or select among them, labels must be there.
        limit: Keep only the first this many examples of each split.
        embed: What tells examples apart for tasks with ``sampling: diverse``. Without it they get as many random ones,
            which is enough to know how large everything is.
        label_readers: Methods whose statistics are of the fit split's labels, see `TaskData.labelled`.

    Raises:
        DataError: Data is missing, damaged, empty, too small, or has unknown labels.
        ConfigError: A task's settings contradict each other or the experts' kind.
    """
    loaded: dict[str, TaskData] = {}
    notes: list[str] = []
    for name, spec in tasks.items():
        reader = READERS[kind](Task(name, spec, configs[name], tokenizer, relative_to))
        loader = TaskLoader(reader, kind, keep_labels, embed, label_readers)
        loaded[name] = loader.load(splits, relative_to, limit)
        notes += loader.notes
    return Calibration(loaded, notes)
