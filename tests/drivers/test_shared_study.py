"""Several processes on one study, played by drivers in this process that share a SQLite file."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from optuna.trial import TrialState, create_trial

from optmerge.config.drivers import OptunaConfig
from optmerge.drivers import driver_type, shared_study, study_storage
from optmerge.drivers.quadratic import quadratic, variables
from optmerge.drivers.shared_study import SharedStudyDriver
from optmerge.drivers.study_storage import ERROR, PROCESS, finished, give_up, given_up
from optmerge.errors import ConfigError, RunError
from optmerge.records import Evaluation, Record

Join = Callable[..., SharedStudyDriver]


@pytest.fixture
def join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Join]:
    """Joins the test's study; every driver is one process."""
    monkeypatch.setattr(shared_study, "POLL", 0.0)
    made: list[SharedStudyDriver] = []

    def make(*, budget: int | None = 8, known: int = 0, upper: float = 2.0, heartbeat: int = 60) -> SharedStudyDriver:
        url = f"sqlite:///{tmp_path / 'studies.db'}"
        config = OptunaConfig(storage=url, study="one", startup=3, known=known, heartbeat=heartbeat)
        box = replace(variables(), upper=np.full(3, upper), known=(np.full(3, 0.7), np.full(3, 0.4)))
        assert driver_type(config) is SharedStudyDriver
        made.append(SharedStudyDriver(config, box, seed=np.random.SeedSequence(0), fit_sizes={}, budget=budget))
        return made[-1]

    yield make
    for driver in made:
        driver.close()
        driver._storage.engine.dispose()


def turn(driver: SharedStudyDriver) -> bool:
    """One generation; whether there was a trial in it."""
    candidates = driver.ask()
    driver.tell(candidates, [quadratic(candidate) for candidate in candidates])
    return bool(candidates)


def states(driver: SharedStudyDriver) -> list[TrialState]:
    return [trial.state for trial in driver._trials()]


def kill(driver: SharedStudyDriver) -> None:
    """No more signs of life, and nothing said."""
    assert driver._taken is not None
    assert driver._taken.pulse is not None
    driver._taken.pulse.stop()
    driver._taken = None


def test_two_processes_have_the_given_trials_once_and_the_budget_exactly(join: Join) -> None:
    first, second = join(known=2), join(known=2)
    asked = [first.ask(), second.ask()]
    third = join(known=2)
    asked.append(third.ask())
    given = [first.variables.start, *first.variables.known]
    assert [candidates[0].vector.tobytes() for candidates in asked] == [vector.tobytes() for vector in given]
    for driver, candidates in zip((first, second, third), asked, strict=True):
        driver.tell(candidates, [quadratic(candidate) for candidate in candidates])
    while not first.stop():
        turn(first)
        turn(second)
    assert states(first) == [TrialState.COMPLETE] * 8
    assert second.stop() == {"study": "has the 8 trials of the budget"}
    vectors = [tuple(trial.params.values()) for trial in first._trials()]
    assert len(set(vectors)) == 8, "processes of one seed draw different trials"


def test_what_others_work_on_is_waited_for(join: Join) -> None:
    first, second = join(budget=2), join(budget=2)
    candidates = first.ask()
    assert turn(second)
    assert second.ask() == [], "the only trial that is left is somebody's"
    assert not second.stop()
    first.tell(candidates, [Evaluation(0.5)])
    assert second.stop()
    assert first.info() == {"trial": 0.0, "finished": 0.0}


def test_a_trial_beyond_the_budget_is_given_up_before_it_is_evaluated(join: Join) -> None:
    driver = join(budget=2)
    assert turn(driver)
    assert turn(driver)
    params, distributions = driver._trials()[0].params, driver._distributions
    driver._study.add_trial(create_trial(state=TrialState.WAITING, params=params, distributions=distributions))
    assert driver.ask() == []
    assert [finished(trial) for trial in driver._trials()] == [True, True, False]
    assert given_up(driver._trials()[2])


def test_a_failed_evaluation_counts_and_is_not_tried_again(join: Join) -> None:
    driver = join(budget=3)
    driver.ask()
    driver.tell([], [])
    assert turn(driver)
    assert turn(driver)
    assert driver.stop()
    assert states(driver) == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]
    assert driver._trials()[0].user_attrs[ERROR] == "no finite value"


def test_a_trial_that_is_handed_back_goes_to_another(join: Join) -> None:
    first, second = join(budget=2), join(budget=2)
    vector = first.ask()[0].vector
    first.close()
    (again,) = second.ask()
    assert again.vector.tobytes() == vector.tobytes()
    second.tell([again], [quadratic(again)])
    assert turn(second)
    assert second.stop()
    assert states(second) == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]
    assert given_up(second._trials()[0])
    assert second._trials()[1].system_attrs["retry_history"] == [0]


def test_without_signs_of_life_a_trial_is_tried_again_and_the_late_value_does_not_count(
    join: Join, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(study_storage, "GRACE", 1)
    first, second = join(budget=1, heartbeat=1), join(budget=1, heartbeat=1)
    candidates = first.ask()
    assert first._taken is not None
    assert first._taken.pulse is not None
    first._taken.pulse.stop()
    again: list[object] = []
    deadline = time.monotonic() + 20
    while not again and time.monotonic() < deadline:
        again = list(second.ask())
        time.sleep(0.1)
    assert again, "nobody took it over"
    with caplog.at_level(logging.WARNING):
        first.tell(candidates, [Evaluation(0.25)])
    assert "what this run found for it does not count there" in caplog.text
    second.tell(again, [Evaluation(0.5)])  # type: ignore[arg-type]
    assert [trial.value for trial in second._trials()] == [None, 0.5]
    assert second.stop()


def test_signs_of_life_keep_a_trial(join: Join) -> None:
    first, second = join(budget=1, heartbeat=1), join(budget=1, heartbeat=1)
    candidates = first.ask()
    deadline = time.monotonic() + study_storage.GRACE + 1.5
    while time.monotonic() < deadline:
        assert second.ask() == []
        time.sleep(0.2)
    first.tell(candidates, [Evaluation(0.25)])
    assert second.stop()


def test_a_process_that_died_before_it_gave_its_name_is_not_waited_for(
    join: Join, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = join(budget=1)
    dead = driver._storage.create_new_trial(driver._study._study_id)  # without a heartbeat: Optuna never calls it stale
    assert driver.ask() == []
    monkeypatch.setattr(shared_study, "GRACE", -1)
    (again,) = driver.ask()
    assert driver._trials()[0]._trial_id == dead
    assert given_up(driver._trials()[0])
    assert again.vector.tobytes() == driver.variables.start.tobytes(), "the vector it was to have"
    assert PROCESS in driver._trials()[1].user_attrs


def test_a_vector_is_not_tried_for_ever(join: Join, caplog: pytest.LogCaptureFixture) -> None:
    driver = join(budget=1)
    for _ in range(study_storage.RETRIES + 1):
        driver.ask()
        driver.close()
    assert "is not tried again" in caplog.text
    assert TrialState.WAITING not in states(driver)
    assert turn(driver), "another vector takes its place in the budget"
    assert driver.stop()


def test_a_replayed_trial_is_told_once(join: Join) -> None:
    first = join(budget=3)
    (candidate,) = first.ask()
    kill(first)  # between the record and the study
    record = Record(0, "search", "optuna", "fit", 0.75, vector=candidate.vector, info={"trial": 0.0, "finished": 0.0})
    for expected in (TrialState.COMPLETE, TrialState.COMPLETE):
        resumed = join(budget=3)
        resumed.recall(record)
        assert resumed.stop() == {}
        (again,) = resumed.ask()
        assert again.vector.tobytes() == candidate.vector.tobytes()
        resumed.tell([again], [Evaluation(0.75)])
        assert states(resumed) == [expected]
        assert resumed._trials()[0].value == 0.75
    assert turn(resumed)
    assert resumed.info()["trial"] == 1


def test_a_study_that_lost_its_trials_is_not_continued(join: Join) -> None:
    driver = join()
    driver.recall(Record(0, "search", "optuna", "fit", 0.75, vector=driver.variables.start, info={"trial": 5.0}))
    candidates = driver.ask()
    with pytest.raises(RunError, match="has 0 trials, and this run recorded one with the number 5"):
        driver.tell(candidates, [Evaluation(0.75)])


def test_a_study_of_other_variables_is_not_joined(join: Join) -> None:
    join()
    with pytest.raises(ConfigError, match=r"study 'one' in driver.storage has other variables"):
        join(upper=3.0)


def test_giving_up_twice_queues_once(join: Join) -> None:
    driver = join()
    driver.ask()
    trial = driver._trials()[0]
    give_up(driver._storage, driver._study, trial)
    give_up(driver._storage, driver._study, trial)
    assert states(driver) == [TrialState.FAIL, TrialState.WAITING]
