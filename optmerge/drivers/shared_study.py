"""One of several processes that work on one Optuna study in a database, by ask and tell.

In: the value of this process's last trial. Out: the next trial of the study, from all that the processes found.

    driver = SharedStudyDriver(OptunaConfig(storage="postgresql://me@db/studies", study="demo"), variables, ...)

What another process tells in the meantime decides what is asked next, so a run is no function of its own evaluations.
What was recorded is: while a trajectory is replayed, `recall` gives each trial back by its number and vector, and the
database is asked for nothing but whether it knows the value.

The budget counts the study's finished trials. A trial's *rank* is how many trials before it, by number, are not given
up; one whose rank is outside the budget is given up before it is evaluated. Numbers are given out by the database, and
trials that are given up stay so, so that a rank only falls: never are more trials finished than the budget has.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.storages import fail_stale_trials
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from optmerge.config.drivers import OptunaConfig
from optmerge.drivers.distributions import params_of, vector_of
from optmerge.drivers.samplers import make_sampler
from optmerge.drivers.state import State
from optmerge.drivers.study import StudyDriver
from optmerge.drivers.study_storage import (
    ERROR,
    GRACE,
    PROCESS,
    Pulse,
    finished,
    give_up,
    given_up,
    join_study,
    open_storage,
    original,
    reachable,
)
from optmerge.errors import RunError, RunInterrupted
from optmerge.records import Candidate, Evaluation, Record, Vector

log = logging.getLogger(__name__)

POLL = 0.5  # seconds between two looks at a study whose last trials others work on


@dataclass(frozen=True, eq=False)
class _Taken:
    """The trial that this process works on; ``pulse`` is None for one that is replayed."""

    number: int
    vector: Vector
    pulse: Pulse | None


class SharedStudyDriver(StudyDriver):
    """Optuna's samplers on a study that other processes work on too; see the module.

    The study's first trials are the start and the first ``known`` vectors, whichever process gets them. A generation
    is one trial, or none where others hold all that is left of the budget.
    """

    def _set_up(self) -> None:
        super()._set_up()
        config, variables = self.config, self.variables
        self._storage = open_storage(config)
        with reachable(config):
            self._study = join_study(self._storage, config, variables)
        self._study.sampler = NumberedSampler(
            config,
            self._distributions,
            seed=self.seed,
            given=[params_of(variables, vector) for vector in self._given],
        )
        self._process = f"{platform.node()}:{os.getpid()}"
        self._recalled: Record | None = None
        self._taken: _Taken | None = None
        self._number: int | None = None
        self._finished = 0
        self._waiting = False
        self._nameless: dict[int, float] = {}  # running trials without a process -> since when this process sees them

    def info(self) -> dict[str, float]:
        """The number of the ``trial`` that was asked last, and how many the study had ``finished`` then."""
        return {} if self._number is None else {"trial": float(self._number), "finished": float(self._finished)}

    def stop(self) -> dict[str, str]:
        """The study has all trials of the budget, whoever made them; not asked while a trajectory is replayed."""
        if self.budget is None or self._recalled is not None:
            return {}
        with reachable(self.config):
            done = sum(finished(trial) for trial in self._trials())
        return {"study": f"has the {self.budget} trials of the budget"} if done >= self.budget else {}

    def recall(self, record: Record) -> None:
        """The next `ask` gives the trial of this record again."""
        self._recalled = record

    def close(self) -> None:
        """Queue the trial that nobody scored, for the others."""
        taken, self._taken = self._taken, None
        if taken is None or taken.pulse is None:
            return
        taken.pulse.stop()
        try:
            with reachable(self.config):
                give_up(self._storage, self._study, self._frozen(taken.number))
        except RunInterrupted as problem:
            log.warning(
                "trial %d could not be given back (%s); others try it again after a while", taken.number, problem
            )

    def _ask(self) -> list[Candidate]:
        record, self._recalled = self._recalled, None
        if record is not None:
            assert record.vector is not None
            self._number = int(record.info["trial"])
            self._taken = _Taken(self._number, record.vector, None)
            return [self.candidate(record.vector)]
        with reachable(self.config):
            fail_stale_trials(self._study)
            self._give_up_nameless()
            trials = [trial for trial in self._trials() if not given_up(trial)]
            self._finished = sum(map(finished, trials))
            queued = any(trial.state == TrialState.WAITING for trial in trials)
            if self.budget is not None and len(trials) >= self.budget and not queued:
                if not self._waiting:
                    log.info("other processes work on the rest of the study's %d trials; waiting", self.budget)
                self._waiting = True
                time.sleep(POLL)
                return []
            self._waiting = False
            trial = self._study.ask(self._distributions)
            pulse = Pulse(self._storage, trial._trial_id)
            trial.set_user_attr(PROCESS, self._process)
            rank = sum(other.number < trial.number and not given_up(other) for other in self._trials())
            vector = vector_of(self.variables, trial.params)
            if self.budget is not None and rank >= self.budget:
                pulse.stop()
                give_up(self._storage, self._study, self._frozen(trial.number), again=False)
                return []
        self._number = trial.number
        self._taken = _Taken(trial.number, vector, pulse)
        return [self.candidate(vector)]

    def _tell(self, evaluations: list[Evaluation]) -> None:
        taken, self._taken = self._taken, None
        if taken is None:
            return
        if taken.pulse is not None:
            taken.pulse.stop()
        with reachable(self.config):
            told = self._tell_study(taken.number, float(evaluations[0].value) if evaluations else None)
        if not told and taken.pulse is not None:
            log.warning(
                "trial %d of the study gave no sign of life for too long, so others try it again; what this run found "
                "for it does not count there",
                taken.number,
            )

    def _tell_study(self, number: int, value: float | None) -> bool:
        """Finish a trial, None being a failure; whether it was still this process's to finish."""
        trial = self._frozen(number)
        if trial.state != TrialState.RUNNING:
            return False
        try:
            if value is None:
                self._storage.set_trial_user_attr(trial._trial_id, ERROR, "no finite value")
            state = TrialState.FAIL if value is None else TrialState.COMPLETE
            self._study.tell(number, value, state=state)
        except (UpdateFinishedTrialError, ValueError):  # given up by another process in between
            return False
        return True

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _frozen(self, number: int) -> FrozenTrial:
        trials = self._trials()
        if number >= len(trials):
            raise RunError(
                f"The study {self.config.study!r} has {len(trials)} trials, and this run recorded one with the number "
                f"{number}: it was deleted or made anew since. Start a new search in another folder."
            )
        return trials[number]

    def _give_up_nameless(self) -> None:
        """Give up running trials whose process died before it gave its name, and so maybe before any sign of life.

        For those Optuna waits for ever. The time is this process's own; no clocks of two machines are compared.
        """
        now = time.monotonic()
        nameless = [t for t in self._trials() if t.state == TrialState.RUNNING and PROCESS not in t.user_attrs]
        self._nameless = {t.number: self._nameless.get(t.number, now) for t in nameless}
        for trial in nameless:
            if now - self._nameless[trial.number] > GRACE * self.config.heartbeat:
                give_up(self._storage, self._study, trial)

    def _state(self) -> State:
        return {"trial": self._number, "finished": self._finished}

    def _load(self, state: State) -> None:
        self._number = cast("int | None", state["trial"])
        self._finished = cast(int, state["finished"])


class NumberedSampler(BaseSampler):
    """A fresh sampler for every trial, seeded by its number in the study, so that no two processes draw the same.

    The first trials are given: whichever process gets the number gets the vector.

    Args:
        config: Which sampler, and its settings.
        distributions: Every variable's.
        seed: The run's; processes may have the same.
        given: The first trials, variable -> value.
    """

    def __init__(
        self,
        config: OptunaConfig,
        distributions: Mapping[str, BaseDistribution],
        *,
        seed: np.random.SeedSequence,
        given: Sequence[Mapping[str, Any]],
    ) -> None:
        self.config = config
        self.distributions = dict(distributions)
        self.seed = seed
        self.given = list(given)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All variables, at once."""
        return self.distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """A given vector, or what the trial's own sampler proposes; those of a trial tried again are kept by Optuna."""
        if original(trial) < len(self.given):
            return dict(self.given[original(trial)])
        sampler = make_sampler(
            self.config, self.distributions, seed=self.seed, trial=trial.number, first=len(self.given)
        )
        joint = sampler.infer_relative_search_space(study, trial)
        proposed = sampler.sample_relative(study, trial, joint)
        return {
            name: proposed[name] if name in proposed else sampler.sample_independent(study, trial, name, distribution)
            for name, distribution in self.distributions.items()
        }

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Not reached, as every variable was proposed."""
        raise NotImplementedError(f"{param_name} was not proposed")
