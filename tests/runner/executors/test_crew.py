"""The crew: jobs handed out, tried again, given up, by workers that do what a script says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from optmerge.errors import ConfigError, RunFailed
from optmerge.records import Candidate, Evaluation
from optmerge.runner.crew import STARTS, Crew, Order
from optmerge.runner.executor import Finished, Job
from tests.runner.executors.scripted import ScriptedWorkers


def job(value: float) -> Job:
    return Job("fit", Candidate(np.array([value])))


def value_of(order: Order) -> float:
    return float(order.job.candidate.vector[0])


def crew_over(workers: ScriptedWorkers, count: int, **settings: Any) -> Crew:
    return Crew(workers, workers=count, clock=workers.clock, **settings)


def all_of(crew: Crew) -> list[Finished]:
    found = []
    while (finished := crew.next_finished(None)) is not None:
        found.append(finished)
    return found


def test_jobs_run_side_by_side_and_end_in_their_own_order() -> None:
    workers = ScriptedWorkers(lambda worker, order: (Evaluation(value_of(order)), value_of(order)))
    crew = crew_over(workers, 2)
    handles = [crew.submit(job(seconds)) for seconds in (3.0, 1.0, 1.0)]
    found = all_of(crew)
    assert [finished.handle for finished in found] == [handles[1], handles[2], handles[0]]
    assert [finished.outcome().value for finished in found] == [1.0, 1.0, 3.0]
    assert workers.now == 1.0 + 3.0  # starting, then the longest: the other worker did the two short ones meanwhile


def test_a_lost_workers_job_goes_to_another_before_all_others() -> None:
    tried: list[tuple[int, float]] = []

    def script(worker: int, order: Order) -> tuple[Any, float]:
        tried.append((worker, value_of(order)))
        return ("worker 0 died of signal 9" if worker == 0 else Evaluation(value_of(order)), 1.0)

    workers = ScriptedWorkers(script, start_seconds=0.5)
    crew = crew_over(workers, 2, retries=2)
    for value in (1.0, 2.0, 3.0):
        crew.submit(job(value))
    found = {finished.outcome().value: finished for finished in all_of(crew)}
    assert sorted(found) == [1.0, 2.0, 3.0]
    assert tried[:3] == [(0, 1.0), (1, 2.0), (1, 1.0)]
    assert found[1.0].attempts == 2


def test_what_fails_everywhere_is_reported_with_its_reason() -> None:
    workers = ScriptedWorkers(lambda worker, order: (f"worker {worker} died of signal 9", 1.0))
    crew = crew_over(workers, 2, retries=3)
    crew.submit(job(1.0))
    (finished,) = all_of(crew)
    assert finished.evaluation is None
    assert finished.attempts == 4
    assert "died of signal 9 (tried 4 times)" in str(finished.outcome().error)


def test_a_hung_worker_is_ended_and_its_job_tried_again() -> None:
    hung: list[int] = []

    def script(worker: int, order: Order) -> tuple[Any, float]:
        if not hung:
            hung.append(worker)
            return None, 0.0
        return Evaluation(7.0), 1.0

    workers = ScriptedWorkers(script)
    crew = crew_over(workers, 1, timeout=10.0)
    crew.submit(job(1.0))
    (finished,) = all_of(crew)
    assert finished.outcome().value == 7.0
    assert finished.attempts == 2
    assert ("kill", 0, 11.0) in workers.log
    assert workers.now == 1.0 + 10.0 + 1.0 + 1.0


def test_slow_starts_are_not_timed() -> None:
    workers = ScriptedWorkers(start_seconds=1000.0)
    crew = crew_over(workers, 1, timeout=10.0)
    crew.submit(job(1.0))
    assert [finished.attempts for finished in all_of(crew)] == [1]


def test_waiting_ends_in_time_and_loses_nothing() -> None:
    workers = ScriptedWorkers(lambda worker, order: (Evaluation(1.0), 5.0), start_seconds=0.0)
    crew = crew_over(workers, 1)
    assert crew.next_finished(1.0) is None  # nothing is submitted
    crew.submit(job(1.0))
    assert crew.next_finished(2.0) is None
    assert workers.now == 2.0
    finished = crew.next_finished(None)
    assert finished is not None
    assert finished.seconds == 5.0


def test_cancelled_jobs_are_neither_begun_nor_reported() -> None:
    workers = ScriptedWorkers(start_seconds=0.0)
    crew = crew_over(workers, 1)
    first, second, third = (crew.submit(job(value)) for value in (1.0, 2.0, 3.0))
    assert crew.next_finished(0.0) is None  # the first one runs
    crew.cancel(first)
    crew.cancel(second)
    assert [finished.handle for finished in all_of(crew)] == [third]
    assert len([entry for entry in workers.log if entry[0] == "send"]) == 2


def test_a_context_is_sent_once_and_again_to_a_new_worker() -> None:
    died: list[int] = []

    def script(worker: int, order: Order) -> tuple[Any, float]:
        if value_of(order) == 2.0 and not died:
            died.append(worker)
            return "it died", 1.0
        return Evaluation(0.0), 1.0

    workers = ScriptedWorkers(script)
    crew = crew_over(workers, 1)
    crew.use("first")
    for value in (0.0, 1.0, 2.0):
        crew.submit(job(value))
    all_of(crew)
    crew.use("second")
    crew.submit(job(3.0))
    all_of(crew)
    assert [context for _, context in workers.contexts] == ["first", None, None, "first", "second"]


def test_a_users_mistake_is_raised() -> None:
    workers = ScriptedWorkers(lambda worker, order: (ConfigError("the term fails"), 1.0))
    crew = crew_over(workers, 2)
    crew.submit(job(1.0))
    with pytest.raises(ConfigError, match="the term fails"):
        crew.next_finished(None)


def test_a_worker_that_cannot_start_is_given_up_and_the_others_go_on() -> None:
    workers = ScriptedWorkers(starts=lambda worker, number: "it has no memory" if worker == 0 else None)
    crew = crew_over(workers, 2)
    for value in range(8):
        crew.submit(job(float(value)))
    assert {finished.worker for finished in all_of(crew)} == {1}
    assert len([entry for entry in workers.log if entry[:2] == ("start", 0)]) == STARTS


def test_no_worker_at_all_ends_the_run() -> None:
    workers = ScriptedWorkers(starts=lambda worker, number: "it has no memory")
    crew = crew_over(workers, 2)
    crew.submit(job(1.0))
    with pytest.raises(RunFailed, match=r"each was lost 3 times.*it has no memory"):
        crew.next_finished(None)


def test_closing_ends_the_workers() -> None:
    workers = ScriptedWorkers()
    crew = crew_over(workers, 2)
    crew.submit(job(1.0))
    crew.close()
    assert workers.closed
