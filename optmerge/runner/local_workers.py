"""Workers of this machine: one process for each, started by this one and ended with it.

    workers = LocalWorkers([WorkerSpec.of(problem, config, devices=["cuda:0"], threads=4), ...])
    crew = Crew(workers, workers=2)

Each is a fresh interpreter in a session of its own, so that Ctrl-C reaches the driver alone, and talks over a socket
whose closing tells either side at once that the other is gone (`optmerge.runner.worker_process`). What is said is
pickled whole: torch would have the connection hand tensors over in shared memory, which only related processes open.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import IO

from optmerge.runner.crew import Event, Lost, Order, Ready, Replied
from optmerge.runner.worker import WorkerSpec

log = logging.getLogger(__name__)

LAST_WORDS = 400  # characters of what a worker wrote to stderr that its end is told with
SECONDS_TO_END = 5.0


@dataclass(frozen=True)
class _Process:
    process: subprocess.Popen[bytes]
    connection: Connection
    errors: IO[bytes]


class LocalWorkers:
    """A transport to processes of this machine, one per spec.

    Attributes:
        host: The address by which they reach this process's servers.
    """

    host = "127.0.0.1"

    def __init__(self, specs: Sequence[WorkerSpec]) -> None:
        self._specs = specs
        self._processes: dict[int, _Process] = {}

    def equip(self, change: Callable[[WorkerSpec], WorkerSpec]) -> None:
        """Change what workers are made from, before any is started."""
        self._specs = list(map(change, self._specs))

    @property
    def pids(self) -> dict[int, int]:
        """Worker -> the number of its process, for those that were started."""
        return {worker: entry.process.pid for worker, entry in self._processes.items()}

    def start(self, worker: int) -> None:
        """Start the worker's process."""
        spec = self._specs[worker]
        ours, theirs = socket.socketpair()
        environment = os.environ | {
            "OMP_NUM_THREADS": str(spec.threads),
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        }
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the worker has ended
        process = subprocess.Popen(
            # -P: this folder's files must not stand before the modules that this process has imported
            [sys.executable, "-P", "-m", "optmerge.runner.worker_process", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            start_new_session=True,
        )
        theirs.close()
        connection = Connection(ours.detach())
        self._processes[worker] = _Process(process, connection, errors)
        self._say(worker, spec)

    def send(self, worker: int, order: Order) -> None:
        """Send an order."""
        self._say(worker, order)

    def kill(self, worker: int) -> None:
        """End a worker by force."""
        entry = self._processes.pop(worker)
        entry.process.kill()
        _end(entry)
        entry.errors.close()

    def wait(self, timeout: float | None) -> Sequence[Event]:
        """What workers have said, or that they have died."""
        by_connection = {entry.connection: worker for worker, entry in self._processes.items()}
        events: list[Event] = []
        for ready in wait(list(by_connection), timeout):
            assert isinstance(ready, Connection)
            worker = by_connection[ready]
            try:
                word, value = pickle.loads(ready.recv_bytes())
            except (EOFError, OSError):
                events.append(Lost(worker, self._died(worker)))
                continue
            if word == "log":
                log.log(value[0], "worker %d: %s", worker, value[1])
            elif word == "mistake":
                events.append(Lost(worker, str(value), value))
            else:
                events.append(Ready(worker) if word == "ready" else Replied(worker, value))
        return events

    def close(self) -> None:
        """Tell all workers to end, and see that they do."""
        entries = list(self._processes.values())
        self._processes.clear()
        for entry in entries:
            entry.connection.close()
        for entry in entries:
            _end(entry)
            entry.errors.close()

    def _say(self, worker: int, message: object) -> None:
        with suppress(OSError):  # it has died: `wait` finds its connection closed
            self._processes[worker].connection.send_bytes(pickle.dumps(message))

    def _died(self, worker: int) -> str:
        """What a worker died of, in a clause; nothing is left of it."""
        entry = self._processes.pop(worker)
        code = _end(entry)
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if code == -signal.SIGKILL:
            how += ", as the system does when memory runs out"
        return f"worker {worker} {how}{_last_words(entry.errors)}"


def _end(entry: _Process) -> int:
    """Close a worker's connection and wait for its end, by force if need be; its exit code."""
    entry.connection.close()
    try:
        return entry.process.wait(SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        entry.process.kill()
    with suppress(subprocess.TimeoutExpired):  # within the driver of a device nothing can end it
        return entry.process.wait(SECONDS_TO_END)
    return -signal.SIGKILL


def _last_words(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    errors.close()
    return f" ({lines[-1][:LAST_WORDS]})" if lines else ""
