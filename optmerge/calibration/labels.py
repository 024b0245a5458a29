"""Label values as they stand in the data, turned into indices of the expert's head.

    index = label_index("positive", {"positive": 1, "negative": 0}, None, classes=2)
    index = HeadLabels(task).index("positive", [], "tasks.films: films.csv, row 3")

Names are matched first; whole numbers that are no names are indices themselves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from optmerge.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from optmerge.calibration.reader import Task

_INTEGER = re.compile(r"-?[0-9]+")


class HeadLabels:
    """What the labels of a task's data mean to its expert's head, or to another one that is given.

    Attributes:
        head: The names of the expert's classes and their indices.
        classes: Size of the head.
        known: The values that have a meaning by name: those of the task's own ``labels``, else the head's.
    """

    def __init__(self, task: Task, head: Mapping[str, int] | None = None) -> None:
        known = (task.config.label2id or {}) if head is None else head
        self.head = {str(name): int(index) for name, index in known.items()}
        self.classes = max(self.head.values(), default=-1) + 1
        self.known = self.head if task.spec.labels is None else task.spec.labels
        self._owner = "the expert's head" if head is None else "the zero-shot head"
        self._given = task.spec.labels
        self._column = task.spec.label

    def index(self, value: object, names: Sequence[str], where: str) -> int:
        """The class that a value means.

        Args:
            value: As the data has it.
            names: Names of the classes, where the data set stores numbers with names; a number's name counts where it
                is known.
            where: The row, for messages.

        Raises:
            DataError: There is no value, or it means no class.
        """
        if isinstance(value, int) and 0 <= value < len(names) and names[value] in self.known:
            value = names[value]
        if value is None or value == "":
            raise DataError(
                f"{where} has no value in the label column {self._column!r}. Fill it in, or remove the row."
            )
        try:
            return label_index(value, self.head, self._given, classes=self.classes, owner=self._owner)
        except DataError as problem:
            raise DataError(f"{where}: {problem}") from None


def label_index(
    value: object,
    head: Mapping[str, int],
    given: Mapping[str, int] | None,
    *,
    classes: int,
    owner: str = "the expert's head",
) -> int:
    """The head's index that a label value means.

    Args:
        value: As the data has it: a name or a number.
        head: The names of the head's classes and their indices, such as the expert's ``label2id``.
        given: The task's own ``labels`` mapping; when there is one, it alone decides.
        classes: Size of the head.
        owner: What messages call the head.

    Raises:
        DataError: The value means nothing to the mapping, or an index outside the head.

    >>> label_index("1", {"LABEL_0": 0, "LABEL_1": 1}, None, classes=2)
    1
    """
    text = _as_text(value)
    known = head if given is None else given
    if text in known:
        index = known[text]
    elif given is None and _INTEGER.fullmatch(text):
        index = int(text)
    else:
        raise DataError(
            f"the label {text!r} is not among {owner if given is None else 'labels'}: {_listing(known)}."
            f"{did_you_mean(text, known)} Say what it means with `labels: {{value: index}}` in the task."
        )
    if not 0 <= index < classes:
        raise DataError(
            f"the label {text!r} means class {index}, and {owner} has the classes 0 to {classes - 1}. "
            "Say what it means with `labels: {value: index}` in the task, or leave such rows out of the data."
        )
    return index


def _as_text(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _listing(known: Mapping[str, int], most: int = 12) -> str:
    names = [repr(name) for name in known]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
