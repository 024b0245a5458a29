"""A leaderboard as data: rows as they were measured, kept one by one, and lines with what follows from all of them.

    rows = RowStore(RunFolder(path))
    rows.put("iso-c", identity, row, scores)
    board = make_board([(row, scores)], folder=path, metric="accuracy", seed=0, left_out={}, objective=["expert-kl"])
    board.lines[0].row.name, board.lines[0].difference         # the best on select, and how far it is from uniform

Lines are ordered by the select objective. The report split orders nothing and chooses nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from optmerge.errors import RunError
from optmerge.runner.bootstrap import bootstrap, paired_bootstrap
from optmerge.runner.folder import RunFolder
from optmerge.runner.result import Scores

Kind = Literal["base", "expert", "uniform", "method", "tuned", "search"]

TUNED = " (tuned)"  # behind a method's name


@dataclass(frozen=True, slots=True)
class BoardRow:
    """One merge, as it was measured.

    Attributes:
        name: For people; unique in a leaderboard.
        kind: What it is.
        select: The objective on select, lower is better; None where it failed.
        report: Task -> metric -> mean over the report split.
        settings: Of the method, its name left out.
        scale: The coefficient of the method's delta.
        needs: What it needs: weights, inputs, gradients, labels.
        seconds: Of making the merge; of a tuned method or a search, of all that it took to find it.
        statistics: Seconds of gathering what a method needs of calibration data.
        peak: Bytes of memory that making the method's delta took.
        evaluations: On select or fit, that it took to find it; 1 where nothing was searched.
        error: Why it has no value.
    """

    name: str
    kind: Kind
    select: float | None = None
    report: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    scale: float | None = None
    needs: tuple[str, ...] = ("weights",)
    seconds: float | None = None
    statistics: float = 0.0
    peak: int | None = None
    evaluations: int = 1
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A row with what is said of it beside the others.

    Attributes:
        mean: Mean over tasks of the report metric, with its 95 % interval.
        worst: The task with the lowest value, and that value.
        difference: Mean difference to the best uniform merge on the same report examples, with its 95 % interval.
    """

    row: BoardRow
    mean: tuple[float, float, float] | None = None
    worst: tuple[str, float] | None = None
    difference: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Leaderboard:
    """All that was compared.

    Attributes:
        folder: Where it is kept.
        lines: The best on select first, those that failed last.
        left_out: Method -> why it is not here.
        metric: Of the report.
        uniform: The row that differences are to: the best uniform merge on select.
        objective: Names of the terms that select is scored by.
        notes: Sentences that a reader must know.
    """

    folder: Path
    lines: tuple[Line, ...]
    left_out: Mapping[str, str]
    metric: str
    uniform: str | None
    objective: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain data, a line's row among its own keys."""
        body = asdict(self) | {"folder": str(self.folder)}
        body["lines"] = [line.pop("row") | line for line in body["lines"]]
        return body


class RowStore:
    """The rows of a leaderboard's folder: ``rows/NAME.json``, and their report scores in ``examples/``."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def get(self, name: str, identity: Sequence[Any]) -> tuple[BoardRow, Scores] | None:
        """What was put there under the same identity and did not fail.

        Raises:
            RunError: A file is damaged.
        """
        found = self._folder.read_json(f"rows/{_file(name)}.json")
        if found is None or found["identity"] != _digest(identity):
            return None
        scores = self._folder.load_examples(_file(name))
        if scores is None:
            return None
        row = found["row"]
        return BoardRow(**row | {"needs": tuple(row["needs"])}), scores

    def put(self, name: str, identity: Sequence[Any], row: BoardRow, scores: Scores) -> None:
        """Keep a row that has values.

        Args:
            name: Of its files.
            identity: Plain data that the row depends on, beside models, data and objective.
            row: What was measured.
            scores: Task -> metric -> float64[n] on the report split.

        Raises:
            RunError: The disk refuses.
        """
        row_file = self._folder.path / "rows" / f"{_file(name)}.json"
        try:
            row_file.unlink(missing_ok=True)  # an older row must not be read with these scores
        except OSError as problem:
            raise RunError(f"{row_file} cannot be replaced: {problem.strerror}.") from None
        self._folder.save_examples(_file(name), scores)
        self._folder.write_json(f"rows/{_file(name)}.json", {"identity": _digest(identity), "row": asdict(row)})


def make_board(
    rows: Sequence[tuple[BoardRow, Scores]],
    *,
    folder: Path,
    metric: str,
    seed: int,
    left_out: Mapping[str, str],
    objective: Sequence[str],
    notes: Sequence[str] = (),
) -> Leaderboard:
    """Put rows in order and beside the best uniform one.

    Args:
        rows: With their report scores; those of a row that failed are empty.
        folder: Where the leaderboard is kept.
        metric: Which report metric counts.
        seed: Of the bootstraps.
        left_out: Method -> reason.
        objective: Terms of the select split.
        notes: What a reader must know.
    """
    able = sorted(((row, scores) for row, scores in rows if row.select is not None), key=_value)
    uniform = next(((row, scores) for row, scores in able if row.kind == "uniform"), None)
    lines = []
    for row, scores in able:
        own = {task: arrays[metric] for task, arrays in scores.items()}
        mean = bootstrap(own, seed=seed)
        difference = None
        if uniform is not None and row.name != uniform[0].name:
            rival = {task: arrays[metric] for task, arrays in uniform[1].items()}
            apart = paired_bootstrap(own, rival, seed=seed)
            difference = (apart.mean, apart.low, apart.high)
        worst = min(((task, values[metric]) for task, values in row.report.items()), key=lambda one: one[1])
        lines.append(Line(row, (mean.mean, mean.low, mean.high), worst, difference))
    lines += [Line(row) for row, _ in rows if row.select is None]
    return Leaderboard(
        folder,
        tuple(lines),
        left_out,
        metric,
        None if uniform is None else uniform[0].name,
        tuple(objective),
        tuple(notes),
    )


def _value(one: tuple[BoardRow, Scores]) -> float:
    assert one[0].select is not None, "only rows with a value are ordered by it"
    return one[0].select


def _file(name: str) -> str:
    """A row's name as a file's."""
    return quote(name, safe="+=,")


def _digest(identity: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(list(identity), sort_keys=True).encode()).hexdigest()
