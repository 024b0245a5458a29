"""A study in a database that several processes share: opened, and kept alive by heartbeats.

    storage = open_storage(config)                 # OptunaConfig with a storage
    study = join_study(storage, config, variables)
    with reachable(config):
        trial = study.ask(distributions)
    pulse = Pulse(storage, trial._trial_id)        # signs of life while it is worked on
    pulse.stop()

A trial that is *given up* is a failed one without the attribute `ERROR`: its process died, or handed it back. Somebody
else tries the same vector again. A trial whose evaluation failed has the reason in `ERROR`, and counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from optmerge.config.drivers import OptunaConfig
from optmerge.config.storage_url import opened_url
from optmerge.drivers.optuna_quiet import quiet
from optmerge.drivers.variables import Variables
from optmerge.errors import ConfigError, RunInterrupted

if TYPE_CHECKING:
    from optuna.study import Study

log = logging.getLogger(__name__)

ERROR = "error"  # attribute of a trial: why its evaluation failed
PROCESS = "process"  # attribute of a trial: who works on it; set right after its first sign of life
VARIABLES = "variables"  # attribute of a study: a hash of the variables' names and bounds
GRACE = 3  # so many heartbeats may be missed
ATTEMPTS = 4  # to open a database in which others make tables at the same time
RETRIES = 3  # how often one vector is tried again after its process died


def open_storage(config: OptunaConfig) -> RDBStorage:
    """Connect to the database; makes Optuna's tables in an empty one.

    Raises:
        ConfigError: The package for the database is missing, or it cannot be reached. No message has the password.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, IntegrityError, ProgrammingError, SQLAlchemyError

    assert config.storage is not None
    url = opened_url(config.storage)
    try:
        kind = make_url(url)
    except (ArgumentError, ValueError):
        raise ConfigError(
            f"driver.storage ({config.storage}) is no URL that can be read; expected scheme://user@host:port/database."
        ) from None
    extra = {
        "postgresql": "pip install 'optmerge[postgres]'",
        "mysql": "pip install pymysql",
    }.get(kind.get_backend_name(), "")
    options: dict[str, Any] = (
        {"connect_args": {"timeout": 60}} if kind.get_backend_name() == "sqlite" else {"pool_pre_ping": True}
    )
    try:
        for attempt in range(ATTEMPTS):
            with contextlib.suppress(IntegrityError, ProgrammingError):
                return _connect(url, options, config)
            time.sleep(0.5 * (1 + attempt))  # two processes made the tables of an empty database at once
        return _connect(url, options, config)
    except ImportError:
        raise ConfigError(f"driver.storage is a {kind.get_backend_name()} database, which needs {extra}.") from None
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as problem:
        raise ConfigError(
            f"driver.storage ({config.storage}) cannot be opened: {_reason(problem)}. Check that the server runs and "
            "that the database exists (createdb), or leave storage out for a study of this run alone."
        ) from None


def _connect(url: str, options: dict[str, Any], config: OptunaConfig) -> RDBStorage:
    with quiet():
        return RDBStorage(
            url,
            engine_kwargs=options,
            heartbeat_interval=config.heartbeat,
            grace_period=GRACE * config.heartbeat,
            heartbeat_stale_trial_callback=try_again,
        )


def join_study(storage: RDBStorage, config: OptunaConfig, variables: Variables) -> Study:
    """The study, made if nobody has yet; whoever makes it and whoever joins get the same.

    Raises:
        ConfigError: The study searches other variables.
    """
    assert config.study is not None, "the runner names the study"
    digest = _digest(variables)
    with quiet():
        study = optuna.create_study(storage=storage, study_name=config.study, direction="minimize", load_if_exists=True)
    found = study.user_attrs.get(VARIABLES)
    if found is None:
        study.set_user_attr(VARIABLES, digest)
    elif found != digest:
        raise ConfigError(
            f"The study {config.study!r} in driver.storage has other variables (names or bounds) than this search. "
            "Leave driver.study out, and equal searches find each other; or give another name."
        )
    return study


class Pulse:
    """Signs of life of one trial, the first before the constructor returns, from a thread until `stop`."""

    def __init__(self, storage: RDBStorage, trial_id: int) -> None:
        storage.record_heartbeat(trial_id)
        interval = storage.get_heartbeat_interval()
        assert interval is not None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, args=(storage, trial_id, interval), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No more signs of life."""
        self._end.set()
        self._thread.join()

    def _beat(self, storage: RDBStorage, trial_id: int, interval: int) -> None:
        told = False
        while not self._end.wait(interval):
            try:
                storage.record_heartbeat(trial_id)
                told = False
            except Exception as problem:  # the search itself will say so; until then the server may come back
                if not told:
                    log.warning("the study's storage does not take a sign of life (%s)", _reason(problem))
                told = True


def given_up(trial: FrozenTrial) -> bool:
    """Whether a trial is nobody's any more and does not count."""
    return trial.state == TrialState.FAIL and ERROR not in trial.user_attrs


def finished(trial: FrozenTrial) -> bool:
    """Whether a trial counts as an evaluation that was made."""
    return trial.state.is_finished() and not given_up(trial)


def try_again(study: Study, trial: FrozenTrial) -> None:
    """Queue the vector of a trial that was given up, unless it was `RETRIES` times.

    The attributes are those of Optuna's `RetryHeartbeatStaleTrialCallback`, so that its functions read them; who worked
    on it is not copied, as nobody does until it is taken.
    """
    history = [*trial.system_attrs.get("retry_history", []), trial.number]
    if len(history) > RETRIES:
        log.warning("trial %d was given up %d times and is not tried again", history[0], len(history))
        return
    study.add_trial(
        create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            system_attrs={"failed_trial": history[0], "retry_history": history},
        )
    )


def original(trial: FrozenTrial) -> int:
    """The number of the trial that this one tries again, or its own."""
    number: int = trial.system_attrs.get("failed_trial", trial.number)
    return number


def give_up(storage: RDBStorage, study: Study, trial: FrozenTrial, *, again: bool = True) -> None:
    """Mark a running trial as given up, and queue its vector; does nothing if another process was faster."""
    try:
        mine = storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
    except optuna.exceptions.UpdateFinishedTrialError:
        return
    if mine and again:
        try_again(study, trial)


@contextlib.contextmanager
def reachable(config: OptunaConfig) -> Iterator[None]:
    """A block that talks to the database.

    Raises:
        RunInterrupted: The database does not answer any more; what was recorded is whole, and the run can be resumed.
    """
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with quiet():
            yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as problem:
        raise RunInterrupted(
            f"the study's storage ({config.storage}) does not answer any more: {_reason(problem)}"
        ) from None


def _digest(variables: Variables) -> str:
    parts = [list(variables.names), variables.lower.tolist(), variables.upper.tolist()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _reason(problem: BaseException) -> str:
    """The database's own words, without the statement and parameters that SQLAlchemy adds; never a URL of ours."""
    inner: BaseException = problem
    while inner.__cause__ is not None:
        inner = inner.__cause__
    inner = getattr(inner, "orig", None) or inner
    return " ".join(str(inner).split())[:300] or type(inner).__name__
