"""Processes of this machine: answers, deaths and hangs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import torch

from optmerge.config.load import build_config
from optmerge.records import Candidate
from optmerge.runner.crew import Crew, Lost
from optmerge.runner.evaluator import Evaluator
from optmerge.runner.executor import Job
from optmerge.runner.geometry import make_geometry
from optmerge.runner.local_workers import LocalWorkers
from optmerge.runner.problem import open_problem
from optmerge.runner.teachers import Teachers
from optmerge.runner.worker import WorkerSpec
from optmerge.runner.workers import Workers, make_transport

Settings = Callable[..., dict[str, Any]]


@pytest.fixture
def evaluator(settings: Settings, tmp_path: Path) -> Evaluator:
    config = build_config(settings(objective={"terms": [{"name": "entropy"}]}, driver="cma"), root=tmp_path)
    problem = open_problem(config)
    made = Evaluator(problem, Teachers.make(problem))
    made.geometry = make_geometry(problem, problem.space.start)
    return made


@pytest.fixture
def local(evaluator: Evaluator) -> Iterator[LocalWorkers]:
    problem = evaluator.problem
    transport = LocalWorkers([WorkerSpec.of(problem, problem.config, devices=["cpu"], threads=1)])
    yield transport
    transport.close()


@pytest.mark.parametrize(("changes", "threads"), [({"threads": 3}, 3), ({}, 2), ({"workers": 9}, 1)])
def test_workers_have_the_threads_that_are_asked_for_or_their_share(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], threads: int
) -> None:
    made: list[WorkerSpec] = []
    monkeypatch.setattr("optmerge.runner.workers.LocalWorkers", made.extend)
    config = build_config(settings(executor={"workers": 2} | changes), root=tmp_path)
    problem = open_problem(config)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    make_transport(problem, config)
    assert [spec.threads for spec in made] == [threads] * config.executor.workers


def test_a_worker_answers_and_is_replaced_when_it_dies_or_hangs(evaluator: Evaluator, local: LocalWorkers) -> None:
    skipped = 0.0  # seconds by which the crew's clock is put forward, so that only what hangs takes too long
    executor = Workers(Crew(local, workers=1, timeout=3600.0, clock=lambda: time.monotonic() + skipped))
    start = evaluator.problem.space.start
    executor.use(evaluator, start)
    expected = evaluator.fit(Candidate(start))
    executor.submit(Job("fit", Candidate(start)))
    found = executor.next_finished(None)
    assert found is not None
    assert found.outcome().value == expected.value
    assert found.attempts == 1

    first = local.pids[0]
    os.kill(first, signal.SIGSTOP)  # hangs with the next job, as it would in a driver of a device
    executor.submit(Job("fit", Candidate(start)))
    skipped = 3600.0
    found = executor.next_finished(None)
    assert found is not None
    assert (found.outcome().value, found.attempts) == (expected.value, 2)
    assert not psutil.pid_exists(first)

    os.kill(local.pids[0], signal.SIGKILL)
    executor.submit(Job("select", Candidate(start)))
    found = executor.next_finished(None)
    assert found is not None
    assert found.outcome().value == evaluator.select(start).value
    assert found.attempts == 2
    last = local.pids[0]
    executor.close()
    executor.close()
    assert not psutil.pid_exists(last)


class Unreadable:
    """A spec that can be sent and not be read."""

    threads = 1

    def __reduce__(self) -> tuple[Any, ...]:
        return (divmod, (1, 0))


def test_a_worker_that_cannot_read_its_spec_says_so_whatever_lies_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "queue.py").write_text("raise ImportError('a file of the user')\n")
    monkeypatch.chdir(tmp_path)
    transport = LocalWorkers([cast(WorkerSpec, Unreadable())])
    transport.start(0)
    (event,) = transport.wait(300.0)
    transport.close()
    assert isinstance(event, Lost)
    assert event.reason.startswith("worker 0 ended with exit code 1 (ZeroDivisionError")


def test_a_worker_ends_when_nobody_can_send_it_anything() -> None:
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "optmerge.runner.worker_process", str(theirs.fileno())]
    with subprocess.Popen(command, pass_fds=[theirs.fileno()]) as process:
        theirs.close()
        assert process.poll() is None
        ours.close()  # as the system does when it ends a search
        assert process.wait(300.0) == 0
