"""Does the exported winner score what the search said? Loaded by plain transformers, on texts read from the data file.

    check = check_export(folder, plan, zoo, view)
    check.same

Nothing of optmerge's models, batches or evaluator is used: tokenizer, model and padding are those of a stranger who
downloads the folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from optmerge.calibration.splits import content_key
from optmerge.demo.plan import DemoPlan
from optmerge.demo.tasks import Row, read_rows
from optmerge.demo.zoo import Zoo
from optmerge.records import Progress

if TYPE_CHECKING:
    from optmerge.records import Vector

_BATCH = 32


@dataclass(frozen=True, slots=True)
class ExportCheck:
    """What the exported checkpoint scores.

    Attributes:
        folder: Where it is.
        accuracy: Task -> accuracy on the report texts, from the reloaded checkpoint.
        expected: Task -> what the search's table says.
        texts: Report texts in all.
        different: Texts on which the reloaded checkpoint is right where the search was wrong, or the reverse.
    """

    folder: str
    accuracy: dict[str, float]
    expected: dict[str, float]
    texts: int
    different: int

    @property
    def same(self) -> bool:
        """Whether every text is judged alike."""
        return self.different == 0

    @property
    def sentence(self) -> str:
        """For people."""
        mean = sum(self.accuracy.values()) / len(self.accuracy)
        if self.same:
            verdict = "the same on every one of them as in the search"
        else:
            verdict = f"NOT the same as in the search on {self.different} of them"
        return (
            f"The exported checkpoint, reloaded with transformers alone: mean accuracy {mean:.3f} on {self.texts} "
            f"report texts, {verdict}."
        )


def report_rows(rows: list[Row], count: int) -> list[Row]:
    """The rows of the report split, in its order: the first ``count`` by content hash."""
    return sorted(rows, key=lambda row: content_key(row[0], None))[:count]


def check_export(
    folder: Path,
    plan: DemoPlan,
    zoo: Zoo,
    scores: dict[str, Vector],
    *,
    progress: Progress = lambda stage, done, total: None,
) -> ExportCheck:
    """Score an exported checkpoint on the report texts.

    Args:
        folder: A checkpoint with one folder per task.
        plan: The demo.
        zoo: Where the texts are.
        scores: Task -> 1 or 0 for every report text, in the split's order, as the search found it.
        progress: Told of every task.
    """
    accuracy: dict[str, float] = {}
    expected: dict[str, float] = {}
    different = texts = 0
    for done, task in enumerate(plan.tasks):
        progress("reload and score", done, len(plan.tasks))
        rows = report_rows(read_rows(zoo.data(task)), plan.report)
        right = _judge(folder / task, rows, plan.recipe.max_tokens)
        accuracy[task] = sum(right) / len(right)
        expected[task] = float(scores[task].mean())
        different += sum(mine != bool(theirs) for mine, theirs in zip(right, scores[task], strict=True))
        texts += len(rows)
    progress("reload and score", len(plan.tasks), len(plan.tasks))
    return ExportCheck(str(folder), accuracy, expected, texts, different)


def _judge(folder: Path, rows: list[Row], max_tokens: int) -> list[bool]:
    """Whether a checkpoint is right about each row."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    right = [False] * len(rows)
    order = sorted(range(len(rows)), key=lambda number: len(rows[number][0]))
    for first in range(0, len(order), _BATCH):
        numbers = order[first : first + _BATCH]
        tokens = tokenizer(
            [rows[number][0] for number in numbers],
            truncation=True,
            max_length=max_tokens,
            padding=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            guesses = model(**tokens).logits.argmax(dim=-1).tolist()
        for number, guess in zip(numbers, guesses, strict=True):
            right[number] = model.config.id2label[guess] == rows[number][1]
    return right
