"""What an iterate that has collapsed does to a search: it ends it, sends it back to its best iterate, or nothing.

    alarm = told_collapse(record, "restore")                  # None for "warn", and where nothing has collapsed
    if alarm is not None and not go_back(driver, journal, progress, alarm):
        ...                                                   # the search ends, and says why

`optmerge.runner.alarms` says what counts as collapsed.
"""

from __future__ import annotations

import logging
from typing import Literal

from optmerge.drivers.base import Driver
from optmerge.records import Record
from optmerge.runner.alarms import COLLAPSE
from optmerge.runner.budget import Progress
from optmerge.runner.journal import Journal

log = logging.getLogger(__name__)

Consequence = Literal["stop", "restore", "warn"]


def told_collapse(record: Record, consequence: Consequence) -> str | None:
    """What a record says of a collapse, where that has a consequence."""
    return None if consequence == "warn" else record.alarms.get(COLLAPSE)


def go_back(driver: Driver, journal: Journal, progress: Progress, alarm: str) -> bool:
    """Go back to the best iterate with smaller steps: once in a search, and only with a driver that can.

    Returns:
        Whether the search goes on from there; ``progress`` notes it.
    """
    if progress.restored or progress.best_record is None:
        return False
    best = journal.trajectory.records[progress.best_record]
    vector = best.vector if best.stage == journal.stage else driver.variables.start  # where this stage began
    assert vector is not None
    if not driver.restart(vector):
        return False
    progress.restored = True
    log.warning("%s. The search goes back to its best iterate, with smaller steps", alarm)
    return True
