"""Workers that do what a script says, on a clock that only they move."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from optmerge.records import Evaluation
from optmerge.runner.crew import Event, Lost, Order, Ready, Replied, Reply


@dataclass
class ScriptedWorkers:
    """A transport: ``script`` says of worker, try and order what comes of it and how many seconds it takes.

    What comes of it is an evaluation, an error of the user's, a text (the worker is lost for that reason), or None: it
    hangs. Starting takes ``start_seconds``; ``starts`` says of the worker and its start (from 1) why it fails, if so.
    """

    script: Callable[[int, Order], tuple[Any, float]] = lambda worker, order: (Evaluation(0.0), 1.0)
    starts: Callable[[int, int], str | None] = lambda worker, number: None
    start_seconds: float = 1.0
    now: float = 0.0
    log: list[tuple[str, int, float]] = field(default_factory=list)
    contexts: list[tuple[int, Any]] = field(default_factory=list)
    closed: bool = False
    _due: list[tuple[float, int, Event]] = field(default_factory=list)
    _number: dict[int, int] = field(default_factory=dict)

    def clock(self) -> float:
        return self.now

    def start(self, worker: int) -> None:
        self.log.append(("start", worker, self.now))
        self._number[worker] = self._number.get(worker, 0) + 1
        why = self.starts(worker, self._number[worker])
        event = Ready(worker) if why is None else Lost(worker, why)
        self._due.append((self.now + self.start_seconds, worker, event))

    def send(self, worker: int, order: Order) -> None:
        self.log.append(("send", worker, self.now))
        self.contexts.append((worker, order.context))
        result, seconds = self.script(worker, order)
        if result is not None:
            lost = isinstance(result, str)
            event = Lost(worker, result) if lost else Replied(worker, Reply(result, seconds))
            self._due.append((self.now + seconds, worker, event))

    def kill(self, worker: int) -> None:
        self.log.append(("kill", worker, self.now))
        self._due = [entry for entry in self._due if entry[1] != worker]

    def wait(self, timeout: float | None) -> Sequence[Event]:
        moment = min((entry[0] for entry in self._due), default=math.inf)
        until = math.inf if timeout is None else self.now + timeout
        assert min(moment, until) < math.inf, "nothing will ever happen"
        self.now = max(self.now, min(moment, until))
        due = [entry for entry in self._due if entry[0] <= self.now]
        self._due = [entry for entry in self._due if entry[0] > self.now]
        return [event for _, _, event in due]

    def close(self) -> None:
        self.closed = True
