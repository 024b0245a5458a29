"""Runs a process and samples the anonymous memory of it and all of its children.

    measured = run_measured([sys.executable, "-c", "pass"])
    measured.seconds, measured.peak, measured.output

Anonymous memory is what the process itself allocated (RssAnon of ``/proc/PID/status``); pages of mapped files, which
the kernel drops at will, are not counted. A child between fork and exec shows its parent's pages as its own, so a child
counts once it runs a program; nothing that is measured here works in forks of itself. A peak shorter than the time
between two samples can be missed.
"""

from __future__ import annotations

import os
import resource
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_FORKED = 0x40  # PF_FORKNOEXEC of the kernel's include/linux/sched.h
INTERVAL = 0.003  # seconds between samples, or more where a sample is slow
SHARE = 0.05  # most of a core that sampling takes, since what is measured is also timed


@dataclass(frozen=True, slots=True)
class Measured:
    """A finished process.

    Attributes:
        seconds: Wall-clock time from start to end.
        processor: Seconds of processors, of the process and its children: what else runs changes it less.
        peak: Most anonymous memory seen at once, in bytes, summed over the process and its children.
        output: Its standard output.
    """

    seconds: float
    processor: float
    peak: int
    output: str


def run_measured(
    command: Sequence[str], *, variables: Mapping[str, str] | None = None, folder: Path | None = None
) -> Measured:
    """Run a command to its end.

    Args:
        command: Program and arguments.
        variables: Environment variables beside those of this process.
        folder: Where it runs.

    Raises:
        SystemExit: It failed; the message ends with what it wrote to standard error.
    """
    begun, used = time.perf_counter(), _processor_seconds()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, **(variables or {})},
    )
    with PeakSampler(process.pid) as sampler:
        output, errors = process.communicate()
    seconds = time.perf_counter() - begun
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{errors[-4000:]}")
    return Measured(seconds, _processor_seconds() - used, sampler.peak, output)


def _processor_seconds() -> float:
    """Of all children so far that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class PeakSampler:
    """Samples a process and its children from a thread of this one, as a context manager.

    Attributes:
        peak: Most anonymous memory seen at once, in bytes.
    """

    def __init__(self, pid: int) -> None:
        self.peak = 0
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> PeakSampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.is_set():
            begun = time.perf_counter()
            self.peak = max(self.peak, sum(anonymous(pid) for pid in family_of(self._pid)))
            self._ended.wait(max(INTERVAL, (time.perf_counter() - begun) / SHARE))


def anonymous(pid: int) -> int:
    """Anonymous resident memory of a process in bytes; 0 when it has ended."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as lines:
            for line in lines:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def family_of(pid: int) -> list[int]:
    """A process and all that descend from it, still run, and run a program of their own."""
    found, open_ones = [], [pid]
    while open_ones:
        one = open_ones.pop()
        if one == pid or _runs_a_program(one):
            found.append(one)
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            for task in list(Path(f"/proc/{one}/task").glob("*/children")):
                with suppress(FileNotFoundError, ProcessLookupError):  # one of its threads has
                    open_ones += map(int, task.read_text().split())
    return found


def _runs_a_program(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    flags = int(text.rpartition(")")[2].split()[6])  # the program's name, in brackets, may hold anything
    return not flags & _FORKED
