"""What a tracking service is asked to do, and what is shown there besides metrics.

    class Printing:                       # a service: see `Tracker`
        def log(self, row): print(row)

`TrackerSink` feeds one of them; `WandbTracker` and `TrackioTracker` are the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from optmerge.tracking.view import RunView, Status
from optmerge.tracking.wandb_rows import Value

Level = Literal["INFO", "WARN", "ERROR"]


@dataclass(frozen=True)
class Table:
    """A table of plain values."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Files:
    """Files of a run that belong together.

    Attributes:
        kind: What they are in a word: recipe, or report.
        paths: Where they lie.
        metadata: What is to be known of them without opening them.
    """

    kind: str
    paths: Sequence[Path]
    description: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Tracker(Protocol):
    """One run at a service. Everything is called from one thread, `open` first and `close` or `abandon` last."""

    label: str
    remedy: str  # what a user does about a tracker that has failed

    def open(self, view: RunView) -> int:
        """Begin the run there, or continue it; gives how many records it has already.

        Raises:
            UserError: The service cannot be used as it is set up.
        """

    def log(self, row: Mapping[str, Value]) -> None:
        """Log one row of metrics."""

    def summarise(self, values: Mapping[str, Any]) -> None:
        """Set the values that stand for the whole run."""

    def show(
        self, evaluations: int, *, tables: Mapping[str, Table] | None = None, pictures: Mapping[str, Path] | None = None
    ) -> None:
        """Show tables and pictures as they are after so many evaluations."""

    def keep(self, files: Files) -> None:
        """Keep files of the run."""

    def alert(self, title: str, text: str, level: Level) -> None:
        """Tell the user now."""

    def close(self, view: RunView) -> None:
        """End the run there."""

    def abandon(self) -> None:
        """Let go of the run after a failure, so that this process can open it again; it may not have been opened."""


ABANDONED = 1  # the exit code of a run whose tracker failed; the search itself may have gone well
EXIT_CODES: Mapping[Status, int] = {"finished": 0, "failed": 3, "interrupted": 130}  # those of `optmerge search`
