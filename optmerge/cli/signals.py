"""Ctrl-C during a search: once to finish the current evaluation and save, twice to stop now.

    with stop_on_interrupt(note) as stop:
        search(config, root=root, stop=stop)       # stop() gives a reason once the user has asked

SIGTERM, which schedulers send before they kill, counts as the first Ctrl-C.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

NOTE = "Finishing the current evaluation, then saving. Ctrl-C again stops at once."


class StopFlag:
    """Whether the user asked the search to stop. Calling it gives the reason, or None.

    >>> flag = StopFlag()
    >>> flag() is None
    True
    >>> flag.reason = "interrupted by Ctrl-C"
    >>> flag()
    'interrupted by Ctrl-C'

    Attributes:
        reason: Why.
        viewed: Whether a live view shows `note`; a line on stderr would be drawn over.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.viewed = False

    def note(self) -> str:
        """What the user is told once a signal was understood; empty before."""
        return "" if self.reason is None else NOTE

    def __call__(self) -> str | None:  # noqa: D102 - said in the class
        return self.reason


@contextmanager
def stop_on_interrupt(note: Callable[[str], None]) -> Iterator[StopFlag]:
    """Catch SIGINT and SIGTERM inside the block, and put the handlers back after it.

    Args:
        note: Tells the user that the first signal was understood, where no live view does.

    Yields:
        The flag that the signals set. A second signal raises KeyboardInterrupt instead.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag  # only the main thread may install handlers; another caller's flag stays down
        return
    names = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}

    def handle(number: int, frame: FrameType | None) -> None:
        if flag.reason is not None:
            raise KeyboardInterrupt
        flag.reason = f"interrupted by {names[signal.Signals(number)]}"
        if not flag.viewed:
            note(flag.note())

    before = {number: signal.signal(number, handle) for number in names}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
