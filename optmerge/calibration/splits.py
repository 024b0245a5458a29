"""Which example goes where: by the hash of its content, never by the order of the file.

Examples are put in the order of their hashes. Report takes the first, select the next, fit the next, so that the two
splits which judge stay the same whatever the size of fit, and shuffling or appending to a file moves few examples.

    sizes = split_sizes(SplitsConfig(fit=0.5, select=0.2, report=0.3), 1000)
    parts = allocate(documents, sizes)       # {"report": [...], "select": [...], "fit": [...]}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from optmerge.config.tasks import SplitsConfig
from optmerge.records import SplitName

ORDER: tuple[SplitName, ...] = ("report", "select", "fit")
_SALT = "optmerge calibration 1"  # another salt would be another choice of splits for everybody

Item = TypeVar("Item")


def content_key(*parts: str | None) -> str:
    """The hash that stands for an example: of its texts alone, so that neither label nor place can matter.

    >>> content_key("a good film", None)[:8]
    'f66ca6b9'
    """
    return hashlib.sha256(json.dumps([_SALT, *parts]).encode()).hexdigest()


def split_sizes(splits: SplitsConfig, count: int) -> dict[SplitName, int]:
    """Counts as they are, shares (below 1) of ``count`` rounded down; without report where it repeats the others.

    >>> split_sizes(SplitsConfig(fit=0.5, select=20, report=0.3), 100)
    {'report': 30, 'select': 20, 'fit': 50}
    """
    wanted = {name: float(getattr(splits, name)) for name in ORDER if name != "report" or not splits.transductive}
    return {name: int(size if size >= 1 else size * count + 1e-9) for name, size in wanted.items()}


def allocate(documents: Iterable[Sequence[Item]], sizes: Mapping[SplitName, int]) -> dict[SplitName, list[Item]]:
    """Fill report, then select, then fit, each with whole documents, until they have their sizes.

    Documents are taken one by one, and no more than are needed. What the last document of a split has too much is left
    out, so that no document is in two splits.

    Args:
        documents: The examples of every document, by content hash.
        sizes: Examples of every split; none of one that is not there.

    >>> allocate([["a"], ["b1", "b2"], ["c"]], {"report": 2, "select": 1, "fit": 1})
    {'report': ['a', 'b1'], 'select': ['c'], 'fit': []}
    """
    parts: dict[SplitName, list[Item]] = {name: [] for name in ORDER}
    waiting = iter(documents)
    for name, part in parts.items():
        while len(part) < sizes.get(name, 0):
            document = next(waiting, None)
            if document is None:
                return parts
            part.extend(document[: sizes[name] - len(part)])
    return parts
