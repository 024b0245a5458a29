"""Processes of this machine: answers, deaths and hangs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from optmerge.config.load import build_config
from optmerge.records import Candidate
from optmerge.runner.crew import Crew
from optmerge.runner.evaluator import Evaluator
from optmerge.runner.executor import Job
from optmerge.runner.geometry import make_geometry
from optmerge.runner.local_workers import LocalWorkers
from optmerge.runner.problem import open_problem
from optmerge.runner.teachers import Teachers
from optmerge.runner.worker import WorkerSpec
from optmerge.runner.workers import Workers

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
    transport = LocalWorkers([WorkerSpec.of(problem, problem.config, device="cpu", threads=1)])
    yield transport
    transport.close()


def test_a_worker_answers_and_is_replaced_when_it_dies_or_hangs(evaluator: Evaluator, local: LocalWorkers) -> None:
    executor = Workers(Crew(local, workers=1, timeout=20.0))
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
