"""By how much each part of a search raises the most memory that was ever held.

    peak = PeakMemory(torch.device("cpu"))
    ...                               # the driver, recording
    peak.mark("driver")
    ...                               # merging
    peak.mark("merge")
    peak.take()                       # {"driver": 0.5, "merge": 12.0}: MiB since the last time; zeros are left out

The memory is the accelerators' where the search is on any, their peaks added up, else the process's (with the mapped
files that it has touched). What the parts raise sums to the difference between the peak at the end and at the
beginning; a part that needs no more than another one did before raises nothing. Nothing is reset, for others may read
the peak too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

MIB = 2**20


class PeakMemory:
    """Marks the ends of parts.

    Args:
        devices: Where the search is.
        read: Gives the peak so far in bytes; None is that of the device, or of the process.

    >>> peaks = iter([0, 3 * MIB, 3 * MIB, 5 * MIB])
    >>> peak = PeakMemory(torch.device("cpu"), read=lambda: next(peaks))
    >>> for part in ("driver", "merge", "evaluate"):
    ...     peak.mark(part)
    >>> peak.take(), peak.take()
    ({'driver': 3.0, 'evaluate': 2.0}, {})
    """

    def __init__(self, *devices: torch.device, read: Callable[[], int] | None = None) -> None:
        self._read = read or (lambda: peak_bytes(*devices))
        self._high = self._read()
        self._rises: dict[str, float] = {}

    def mark(self, part: str) -> None:
        """What lies between the last mark and this one was ``part``."""
        high = self._read()
        if high > self._high:
            self._rises[part] = self._rises.get(part, 0.0) + (high - self._high) / MIB
            self._high = high

    def take(self) -> dict[str, float]:
        """Part -> MiB by which it raised the peak, since this was last asked."""
        rises, self._rises = self._rises, {}
        return rises


def peak_bytes(*devices: torch.device) -> int:
    """The most bytes held so far: what torch allocated on CUDA devices, else the process's resident memory."""
    if devices[0].type == "cuda":
        return sum(int(torch.cuda.max_memory_allocated(device)) for device in devices)
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
