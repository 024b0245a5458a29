"""Saved states of a search: written atomically, the last two are kept, a damaged one is passed over.

A state is only a short cut: the trajectory alone is enough to replay a search.

    store = StateStore(run / "state")
    store.save(41, driver.state_dict(), {"evaluations": 40})
    saved = store.load(limit=len(records))                      # None where the search is replayed from its start
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from optmerge.atomic import atomic_write
from optmerge.drivers.state import State, dumps, loads
from optmerge.errors import RunError

log = logging.getLogger(__name__)

KEEP = 2


@dataclass(frozen=True)
class SavedState:
    """A driver's state after the first ``cursor`` records of the trajectory."""

    cursor: int
    driver: State
    progress: State


class StateStore:
    """The folder ``state/`` of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, cursor: int, driver: State, progress: State) -> None:
        """Write the state behind ``cursor`` records and drop all but the last two."""
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic_write(self._path(cursor), dumps({"cursor": cursor, "driver": driver, "progress": progress}))
        for path in [*self._paths()[:-KEEP], *self.folder.glob(".*.state.tmp-*")]:  # a killed process leaves the latter
            path.unlink(missing_ok=True)

    def load(self, *, limit: int) -> SavedState | None:
        """The newest whole state of at most ``limit`` records; None if there is none, and the search is replayed."""
        for path in reversed(self._paths()):
            if int(path.stem) > limit:
                continue
            try:
                state = loads(path.read_bytes())
            except RunError as problem:
                log.warning("%s: %s An earlier state is used, and the search replayed from there.", path, problem)
                continue
            return SavedState(cast(int, state["cursor"]), cast(State, state["driver"]), cast(State, state["progress"]))
        return None

    def _path(self, cursor: int) -> Path:
        return self.folder / f"{cursor:08d}.state"

    def _paths(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("*.state") if path.stem.isdigit())
