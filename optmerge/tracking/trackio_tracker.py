"""A search as a run of trackio, which keeps everything on this machine and shows it with `trackio show`.

    tracker = TrackioTracker(TrackingConfig(to="trackio"))

Only `trackio.init`, `trackio.log` and `trackio.finish` are used, which are those of W&B. There are no tables, pictures,
files or alerts there; the run folder has them. A search that is resumed is a run of its own with every evaluation
again, whose name has the number of the attempt.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optmerge.atomic import atomic_write
from optmerge.config.schema import TrackingConfig
from optmerge.errors import MissingExtraError
from optmerge.runner.folder import RunFolder
from optmerge.tracking.tracker import Files, Level, Table
from optmerge.tracking.view import RunView
from optmerge.tracking.wandb_facts import config, group
from optmerge.tracking.wandb_rows import Value

FILE = "trackio.json"


class TrackioTracker:
    """Logs a search to trackio.

    Args:
        tracking: The project.

    Raises:
        MissingExtraError: trackio is not installed.
    """

    label = "trackio"
    remedy = ""

    def __init__(self, tracking: TrackingConfig) -> None:
        self.tracking = tracking
        try:
            import trackio  # noqa: F401
        except ImportError:
            raise MissingExtraError(
                "tracking.to is trackio, which is not installed. Run: pip install 'optmerge[trackio]'"
            ) from None

    def open(self, view: RunView) -> int:
        """Begin a run of the project."""
        import trackio

        before = RunFolder(view.folder).read_json(FILE) or {"attempts": 0}
        attempt = int(before["attempts"]) + 1
        atomic_write(view.folder / FILE, json.dumps({"attempts": attempt}) + "\n")
        with contextlib.redirect_stdout(sys.stderr):  # it prints, and stdout is for facts
            trackio.init(
                project=self.tracking.project,
                name=view.name if attempt == 1 else f"{view.name}-{attempt}",
                group=group(view),
                config=config(view),
            )
        return 0

    def log(self, row: Mapping[str, Value]) -> None:
        """Log one row."""
        import trackio

        trackio.log(dict(row))

    def summarise(self, values: Mapping[str, Any]) -> None:
        """Nothing: trackio has no summary; the report has these values."""

    def show(
        self, evaluations: int, *, tables: Mapping[str, Table] | None = None, pictures: Mapping[str, Path] | None = None
    ) -> None:
        """Nothing: the report has them."""

    def keep(self, files: Files) -> None:
        """Nothing: they lie in the run's folder, on the same machine."""

    def alert(self, title: str, text: str, level: Level) -> None:
        """Nothing: alarms are in the rows."""

    def close(self, view: RunView) -> None:
        """Finish the run."""
        self.abandon()

    def abandon(self) -> None:
        """Finish the run."""
        import trackio

        with contextlib.redirect_stdout(sys.stderr):
            trackio.finish()
