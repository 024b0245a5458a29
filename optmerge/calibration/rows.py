"""What every source of calibration data gives: some columns of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Rows:
    """Some columns of a data set.

    Attributes:
        source: What messages call it: the file's path or the hub id.
        available: Every column that the source has.
        columns: Column -> one value per row, for those asked for that exist; None where a row has no value.
        numbers: Line (or row, or element) of every row in the source, from 1.
        class_names: Column -> names of its classes, where the source stores labels as numbers with names.
    """

    source: str
    available: tuple[str, ...]
    columns: dict[str, list[Any]]
    numbers: Sequence[int]
    class_names: dict[str, list[str]] = field(default_factory=dict)
