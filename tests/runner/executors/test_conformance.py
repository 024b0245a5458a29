"""What the loop may expect of any executor; `EXECUTORS` has them all, over made-up workers where they have workers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from optmerge.errors import ConfigError
from optmerge.records import Candidate, Evaluation, Vector
from optmerge.runner.crew import Crew, Order
from optmerge.runner.executor import Executor, InProcess, Job
from tests.runner.executors.scripted import ScriptedWorkers


class Echo:
    """The value of a vector is its first number; 7 is a mistake of the user's, and 8 fails."""

    def fit(self, candidate: Candidate) -> Evaluation:
        value = float(candidate.vector[0])
        if value == 7.0:
            raise ConfigError("a term's mistake")
        return Evaluation(float("nan"), error="RuntimeError: eight") if value == 8.0 else Evaluation(value)

    def select(self, vector: Vector) -> Evaluation:
        return Evaluation(-float(vector[0]))


def scripted(workers: int) -> Executor:
    def script(worker: int, order: Order) -> tuple[Any, float]:
        try:
            found: Any = order.job.run(Echo())
        except ConfigError as mistake:
            found = mistake
        return found, 10.0 - float(order.job.candidate.vector[0])  # the last is done first

    transport = ScriptedWorkers(script)
    return Crew(transport, workers=workers, clock=transport.clock)


EXECUTORS: dict[str, Callable[[], Executor]] = {
    "in-process": lambda: InProcess(Echo()),
    "crew of one": lambda: scripted(1),
    "crew of three": lambda: scripted(3),
}


@pytest.fixture(params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> Any:
    with closing(EXECUTORS[request.param]()) as made:
        yield made


def job(value: float, split: Any = "fit") -> Job:
    return Job(split, Candidate(np.array([value])))


def values(executor: Executor) -> dict[int, float]:
    """Handle -> value of all that ends."""
    found: dict[int, float] = {}
    while (finished := executor.next_finished(None)) is not None:
        assert finished.handle not in found, "reported twice"
        assert 0 <= finished.worker < executor.workers
        assert finished.seconds >= 0
        found[finished.handle] = finished.outcome().value
    return found


def test_every_job_is_reported_once_with_its_own_value(executor: Executor) -> None:
    handles = [executor.submit(job(float(number))) for number in range(6)]
    assert len(set(handles)) == 6
    assert values(executor) == {handle: float(number) for number, handle in enumerate(handles)}


def test_a_split_is_judged_as_such(executor: Executor) -> None:
    fit, select = executor.submit(job(3.0)), executor.submit(job(3.0, "select"))
    assert values(executor) == {fit: 3.0, select: -3.0}


def test_nothing_is_reported_where_nothing_is_out(executor: Executor) -> None:
    assert executor.next_finished(None) is None
    assert executor.next_finished(0.0) is None
    executor.submit(job(1.0))
    values(executor)
    assert executor.next_finished(None) is None


def test_jobs_can_be_submitted_while_others_are_out(executor: Executor) -> None:
    first = {executor.submit(job(float(number))) for number in range(4)}
    finished = executor.next_finished(None)
    assert finished is not None
    later = executor.submit(job(5.0))
    assert values(executor).keys() == (first - {finished.handle}) | {later}


def test_a_cancelled_job_is_never_reported(executor: Executor) -> None:
    handles = [executor.submit(job(float(number))) for number in range(6)]
    executor.cancel(handles[0])
    executor.cancel(handles[4])
    assert values(executor).keys() == set(handles) - {handles[0], handles[4]}


def test_a_failed_evaluation_is_reported_with_its_reason(executor: Executor) -> None:
    executor.submit(job(8.0))
    finished = executor.next_finished(None)
    assert finished is not None
    assert finished.outcome().failed
    assert finished.outcome().error == "RuntimeError: eight"


def test_a_mistake_of_the_users_is_raised(executor: Executor) -> None:
    executor.submit(job(7.0))
    with pytest.raises(ConfigError, match="a term's mistake"):
        executor.next_finished(None)


def test_it_can_be_closed_twice(executor: Executor) -> None:
    executor.submit(job(1.0))
    executor.close()
    executor.close()
