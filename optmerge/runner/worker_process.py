"""The program of a local worker: ``python -m optmerge.runner.worker_process FD``, started by `LocalWorkers`.

It is told its `WorkerSpec` and then orders on the socket FD, and answers there with pairs of a word and a value:
``("ready", None)``, ``("reply", Reply)``, ``("mistake", error)`` or ``("log", (level, text))``. When the other end is
closed, by a driver that is done or by one that was killed, it ends at once, whatever it is doing.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from typing import Any

from optmerge.errors import OptmergeError

PARENT_SECONDS = 1.0  # how often the parent is looked for, should somebody else have inherited its end of the socket
_saying = threading.Lock()  # what a thread logs must not get into the middle of an answer


class _Forwarded(logging.Handler):
    """The log goes to the driver's."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def emit(self, record: logging.LogRecord) -> None:
        _say(self._connection, "log", (record.levelno, record.getMessage()))


def _say(connection: Connection, word: str, value: object) -> None:
    message = pickle.dumps((word, value))
    with _saying:
        connection.send_bytes(message)


def _receive(connection: Connection, inbox: queue.SimpleQueue[Any], parent: int) -> None:
    """Take what is sent, and end the process when nobody can send any more."""
    try:
        while os.getppid() == parent:
            if connection.poll(PARENT_SECONDS):
                inbox.put(pickle.loads(connection.recv_bytes()))
    except (EOFError, OSError):
        os._exit(0)
    except Exception:  # what was sent cannot be read here
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main() -> None:
    """Open, and answer orders until the driver is gone."""
    connection = Connection(int(sys.argv[1]))
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, inbox, os.getppid()), daemon=True).start()
    spec = inbox.get()
    from optmerge.runner.worker import Worker, set_cache

    logger = logging.getLogger("optmerge")
    logger.setLevel(logging.ERROR)  # what opening has to say, the driver has said
    logger.addHandler(_Forwarded(connection))
    set_cache(spec)
    try:
        worker = Worker(spec)
    except OptmergeError as mistake:
        _say(connection, "mistake", mistake)
        return
    logger.setLevel(logging.WARNING)
    _say(connection, "ready", None)
    while True:
        _say(connection, "reply", worker.answer(inbox.get()))


if __name__ == "__main__":
    main()
