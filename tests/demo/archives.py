"""Archives shaped like the demo's, with a handful of rows."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

from optmerge.demo.tasks import TASKS

WORDS = ["good", "bad", "film", "vote", "tax", "space", "car", "the", "a", "is"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


def text(number: int, label: str) -> str:
    """A text of its own for every (number, label); the first word gives the label away."""
    digits = " ".join(WORDS[2 + int(digit) % 8] for digit in f"{number:02d}")
    return f"{WORDS[sum(label.encode()) % 2]} {digits} {label} {number}"


def table(rows: list[list[str]], delimiter: str) -> str:
    """Rows as delimited text."""
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return out.getvalue()


def members(task: str, count: int) -> dict[str, str]:
    """Member name -> content of a task's archive, ``count`` rows in all."""
    labels = TASKS[task].labels
    rows = [(text(number, label), label) for number in range(count // len(labels)) for label in labels]
    if task == "sentiment":
        lines = [["text", "label", "source"], ["a long review", "1", "imdb"]]
        lines += [[words, str(labels.index(label)), "rotten_tomatoes"] for words, label in rows]
        return {TASKS[task].members[0]: table(lines, ",")}
    if task == "tweets":
        lines = [["sentiment", "confidence", "text"], ["neutral", "0.5", "unsure"], ["neutral", "", "no vote"]]
        lines += [[label, "1.0", words] for words, label in rows]
        return {TASKS[task].members[0]: table(lines, ",")}
    if task == "author":
        lines = [["Author"], ["discrete"], ["class"]]
        lines += [["", "", "", "", "", "", "", label, "", words] for words, label in rows]
        return {TASKS[task].members[0]: table(lines, "\t")}
    half = len(rows) // 2
    head = "Category\tText\nd\tstring\nclass\t\n\n"
    parts = (rows[:half], rows[half:])
    return {
        name: head + table([[label, words] for words, label in part], "\t")
        for name, part in zip(TASKS[task].members, parts, strict=True)
    }


def write_archive(path: Path, contents: dict[str, str | bytes]) -> Path:
    """A zip file with these members."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path
