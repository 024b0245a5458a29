"""Workers on a Ray cluster: one actor for each, on whatever machine has room for it.

    workers = RayWorkers(spec, workers=8, address="auto", gpus=1.0)
    crew = Crew(workers, workers=8)

Orders and replies are all that Ray carries; its object store holds no weights. A worker maps base and experts from the
paths that the search file names and reads teacher outputs from the driver's cache folder: storage that all machines
have, unless it fetches them (`optmerge.runner.node_files`). An actor that dies, or whose machine does, is replaced by a
new one wherever there is room.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import torch

import optmerge
from optmerge.errors import MissingExtraError, OptmergeError, RunError
from optmerge.runner.crew import Event, Lost, Order, Ready, Replied, Reply
from optmerge.runner.local_workers import LAST_WORDS
from optmerge.runner.worker import Worker, WorkerSpec, set_cache

log = logging.getLogger(__name__)

SECONDS_TO_REACH = 10.0
Log = list[tuple[int, str]]  # level and text


class RayWorker:
    """What runs in an actor. What it logs goes along with its answers, to the driver's log."""

    def __init__(self, spec: WorkerSpec, versions: Mapping[str, str]) -> None:
        self._spec = spec
        self._versions = versions  # of the process that searches
        self._worker: Worker | None = None
        self._said = _Said()

    def open(self) -> tuple[OptmergeError | None, Log]:
        """Open models and data; a mistake of the user's is told rather than raised, since it is no loss."""
        logger = logging.getLogger("optmerge")
        logger.setLevel(logging.ERROR)  # what opening has to say, the driver has said
        logger.addHandler(self._said)
        set_cache(self._spec)
        try:
            _require_versions(self._versions)
            self._worker = Worker(self._spec)
        except OptmergeError as mistake:
            return mistake, self._said.take()
        logger.setLevel(logging.WARNING)
        return None, self._said.take()

    def answer(self, order: Order) -> tuple[Reply, Log]:
        """Do what is asked."""
        assert self._worker is not None, "a worker is opened first"
        return self._worker.answer(order), self._said.take()


class _Said(logging.Handler):
    """Keeps what is logged until it is taken."""

    def __init__(self) -> None:
        super().__init__()
        self._said: Log = []

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append((record.levelno, record.getMessage()))

    def take(self) -> Log:
        said, self._said = self._said, []
        return said


@dataclass(frozen=True, eq=False)
class _Actor:
    handle: Any
    pending: Any = None  # a reference to what it answers
    opened: bool = False


class RayWorkers:
    """A transport to actors.

    Args:
        spec: Of every worker.
        workers: How many there will be.
        address: auto is the cluster that this machine is in, local one of this machine alone; or host:port.
        gpus: Accelerators that each takes; 0 for the CPU.
        cpus: CPU cores that each takes.
    """

    def __init__(self, spec: WorkerSpec, *, workers: int, address: str, gpus: float, cpus: int = 1) -> None:
        """Join the cluster.

        Raises:
            MissingExtraError: Ray is not installed.
            RunError: There is no such cluster, or no machine of it has room for a worker.
        """
        self._ray = ray = _import_ray()
        self._joined = not ray.is_initialized()
        if self._joined:
            before = signal.getsignal(signal.SIGTERM)
            try:
                _knock(os.environ.get("RAY_ADDRESS", address) if address == "auto" else address)
                own = {"include_dashboard": False} if address == "local" else {}
                ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **own)
            except Exception as problem:  # Ray raises bare ones where a node does not come up
                raise RunError(
                    f"There is no Ray cluster at {address!r} ({_told(problem)}). Start one with "
                    "`ray start --head`, give its host:port as executor.address, or set executor.address: local."
                ) from None
            finally:
                if callable(before) and signal.getsignal(signal.SIGTERM) is not before:  # Ray would exit at once
                    signal.signal(signal.SIGTERM, before)
        room = _room(ray.nodes(), {"CPU": float(cpus), "GPU": gpus})
        if not room:
            if self._joined:
                ray.shutdown()
            needed = f"{cpus} CPU" + (f" and {gpus:g} GPU" if gpus else "")
            raise RunError(
                f"A worker takes {needed}, and no machine of the Ray cluster has as many. Start one that has, or set "
                "executor.threads or executor.gpus_per_worker lower."
            )
        if room < workers:
            log.warning(
                "the Ray cluster has room for %d of %d workers; the others begin when it has more", room, workers
            )
        self._spec = replace(spec, threads=cpus)
        self._actor = ray.remote(RayWorker).options(num_cpus=cpus, num_gpus=gpus, max_restarts=0)
        self._actors: dict[int, _Actor] = {}

    @property
    def host(self) -> str:
        """The address of this machine by which the cluster's machines reach it."""
        return str(self._ray.util.get_node_ip_address())

    def equip(self, change: Callable[[WorkerSpec], WorkerSpec]) -> None:
        """Change what workers are made from, before any is started."""
        self._spec = change(self._spec)

    def start(self, worker: int) -> None:
        """Ask for an actor."""
        handle = self._actor.remote(self._spec, _versions())
        self._actors[worker] = _Actor(handle, handle.open.remote())

    def send(self, worker: int, order: Order) -> None:
        """Send an order."""
        actor = self._actors[worker]
        self._actors[worker] = replace(actor, pending=actor.handle.answer.remote(order), opened=True)

    def kill(self, worker: int) -> None:
        """End an actor, whatever it does."""
        self._ray.kill(self._actors.pop(worker).handle, no_restart=True)

    def wait(self, timeout: float | None) -> Sequence[Event]:
        """What actors have answered, or that they are lost."""
        waiting = {actor.pending: worker for worker, actor in self._actors.items() if actor.pending is not None}
        done, _ = self._ray.wait(list(waiting), num_returns=1, timeout=timeout)
        return [self._event(waiting[reference], reference) for reference in done]

    def close(self) -> None:
        """End all actors, and leave the cluster if this joined it."""
        for worker in list(self._actors):
            self.kill(worker)
        if self._joined and self._ray.is_initialized():
            self._ray.shutdown()

    def _event(self, worker: int, reference: Any) -> Event:
        actor = self._actors[worker]
        try:
            value, said = self._ray.get(reference)
        except self._ray.exceptions.RayError as problem:
            del self._actors[worker]
            self._ray.kill(actor.handle, no_restart=True)  # where it is only out of reach
            return Lost(worker, f"worker {worker} was lost ({_told(problem)})")
        self._actors[worker] = replace(actor, pending=None)
        for level, text in said:
            log.log(level, "worker %d: %s", worker, text)
        if actor.opened:
            return Replied(worker, value)
        return Ready(worker) if value is None else Lost(worker, str(value), value)


def _versions() -> dict[str, str]:
    """Of what evaluates, in this process; builds for other devices are no other versions."""
    return {name: module.__version__.partition("+")[0] for name, module in (("optmerge", optmerge), ("torch", torch))}


def _require_versions(wanted: Mapping[str, str]) -> None:
    """Refuse to evaluate with other versions than those of the process that searches.

    Raises:
        RunError: This machine has others.
    """
    here = _versions()
    other = [f"{name} {here[name]}" for name in wanted if here[name] != wanted[name]]
    if other:
        needed = " and ".join(f"{name} {wanted[name]}" for name in wanted if here[name] != wanted[name])
        raise RunError(
            f"{socket.gethostname()}, where a worker is to run, has {' and '.join(other)}, and the search runs with "
            f"{needed}. Install the same on all machines of the cluster."
        )


def _room(nodes: Sequence[Mapping[str, Any]], needed: Mapping[str, float]) -> int:
    """For how many workers machines have room when nothing else runs there."""
    return sum(
        min(int(node["Resources"].get(kind, 0.0) / need + 1e-6) for kind, need in needed.items() if need)
        for node in nodes
        if node["Alive"]
    )


def _knock(address: str) -> None:
    """See that somebody is at host:port, for whom Ray would wait a very long time; an OSError if not."""
    host, _, port = address.rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_REACH).close()


def _told(problem: Exception) -> str:
    """What Ray says, in a line; of an exception in a worker that exception alone, without its traceback."""
    cause = getattr(problem, "cause", None) or problem
    return f"{type(cause).__name__}: {' '.join(str(cause).split())[:LAST_WORDS]}"


def _import_ray() -> Any:
    try:
        return import_module("ray")  # with a name that type checkers need not know
    except ModuleNotFoundError:
        raise MissingExtraError(
            "executor.name is ray, and Ray is not installed. Install it with: pip install 'optmerge[ray]'"
        ) from None
