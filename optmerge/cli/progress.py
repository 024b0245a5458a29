"""A progress bar on stderr for work outside a search (merging, exporting)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

BYTE_STAGES = ("export", "verify")  # what is counted in bytes; other stages count pieces


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int | None], None]]:
    """Yield a function (stage, done, total) that moves the bar; nothing is drawn when stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.text import Text

    class Amount(ProgressColumn):
        """How much is done: bytes with their speed, or pieces."""

        def __init__(self) -> None:
            super().__init__()
            self._bytes, self._speed, self._pieces = DownloadColumn(), TransferSpeedColumn(), MofNCompleteColumn()

        def render(self, task: Task) -> Text:
            if task.description not in BYTE_STAGES:
                return self._pieces.render(task)
            return Text("  ").join([self._bytes.render(task), self._speed.render(task)])

    tasks: dict[str, TaskID] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), Amount(), TimeRemainingColumn(elapsed_when_finished=True))
    with Progress(*columns, console=Console(file=sys.stderr)) as bar:

        def move(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield move
