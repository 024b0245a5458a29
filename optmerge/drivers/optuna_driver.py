"""Optuna's samplers by ask and tell; a generation is one trial.

In: the value of the last trial. Out: the next one; the first are the start and the known recipes.

    driver = OptunaDriver(OptunaConfig(sampler="tpe"), variables, seed=seed, fit_sizes={}, budget=100)

The study lives in memory and is never the truth. Each ask gets a fresh sampler, seeded by the run's seed and the
generation, so the state is just the trials so far, and resuming is exact. (For a file that optuna-dashboard opens,
the trials are mirrored by ``optmerge.tracking``.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import optuna
from optuna.trial import Trial, TrialState, create_trial

from optmerge.drivers.distributions import params_of, vector_of
from optmerge.drivers.multi_objective import objectives_of, task_parts
from optmerge.drivers.optuna_quiet import quiet
from optmerge.drivers.samplers import make_sampler
from optmerge.drivers.state import State
from optmerge.drivers.study import StudyDriver
from optmerge.records import Candidate, Evaluation, Vector


class OptunaDriver(StudyDriver):
    """Optuna's samplers: TPE (Bergstra et al. 2011; multivariate: Falkner et al. 2018), a Gaussian process, and others.

    ``gp`` maximises log expected improvement (Ament et al. 2023) under a Matérn-5/2 kernel with a length scale per
    variable; ``sobol`` (`SobolSampler`) and ``random`` learn nothing. ``nsga2``, ``nsga3`` and ``motpe`` are told each
    task's part (`optmerge.drivers.multi_objective`). The first ``known`` vectors of `Variables` are
    trials before any sampler is asked, what Optuna calls enqueued. Drawn while others are out, a trial is proposed in
    view of those that run, which tpe and gp take for bad ones (the constant liar of Ginsbourger et al. 2010).

    >>> import numpy as np
    >>> from optmerge.config.drivers import OptunaConfig
    >>> from optmerge.drivers import Variables
    >>> variables = Variables(("a", "b"), lower=[0, 0], upper=[1, 1], start=[0.3, 0.3])
    >>> driver = OptunaDriver(OptunaConfig(), variables, seed=np.random.SeedSequence(0), fit_sizes={}, budget=9)
    >>> (candidate,) = driver.ask()
    >>> driver.tell([candidate], [Evaluation(0.5)])
    >>> driver.info()
    {'trials': 1.0, 'best': 0.5}
    """

    def _set_up(self) -> None:
        super()._set_up()
        self._tasks = objectives_of(self.config, self.fit_sizes)
        self._begin()

    @property
    def overlaps(self) -> bool:  # noqa: D102 - as the base class says
        return True

    def info(self) -> dict[str, float]:
        """``trials`` so far and the ``best`` value among them."""
        return {"trials": float(len(self._values))} | ({"best": min(self._values)} if self._values else {})

    def _begin(self) -> None:
        """An empty study."""
        with quiet():
            self._study = optuna.create_study(
                storage=optuna.storages.InMemoryStorage(), directions=["minimize"] * max(1, len(self._tasks))
            )
        self._vectors: list[Vector] = []
        self._values: list[float] = []
        self._parts: list[list[float]] = []  # of each trial, by task; empty for samplers that minimise one value
        self._asked: tuple[Vector, Trial | None] = (self.variables.start, None)
        self._running: dict[int, Trial | None] = {}  # of what is drawn

    def _ask(self) -> list[Candidate]:
        return [self._trial(self._propose(self.generation))]

    def _draw_one(self, number: int) -> Candidate:
        vector = self._propose(number)
        self._running[number] = self._asked[1]
        return self._trial(vector)

    def _trial(self, vector: Vector) -> Candidate:
        return self.candidate(vector, needs=frozenset({"value", "per_task"} if self._tasks else {"value"}))

    def _propose(self, number: int) -> Vector:
        """The vector of a trial, by how many were begun before it."""
        trial: Trial | None = None
        if number < len(self._given):
            vector = self._given[number]
        else:
            with quiet():
                self._study.sampler = make_sampler(
                    self.config,
                    self._distributions,
                    seed=self.seed,
                    trial=number,
                    first=len(self._given),
                    tasks=len(self._tasks),
                )
                trial = self._study.ask(self._distributions)
            vector = vector_of(self.variables, trial.params)
        self._asked = (vector, trial)
        return vector

    def _close_trial(self, trial: Trial | None) -> None:
        """Samplers look past failed trials; what counts is added as a resumed run would add it."""
        if trial is not None:
            with quiet():
                self._study.tell(trial, state=TrialState.FAIL)

    def _tell(self, evaluations: list[Evaluation]) -> None:
        self._close_trial(self._asked[1])
        for evaluation in evaluations:
            self._add(self._asked[0], float(evaluation.value), task_parts(evaluation, self._tasks))

    def _absorb(self, candidates: Mapping[int, Candidate], evaluations: list[Evaluation]) -> None:
        for number in candidates:
            self._close_trial(self._running.pop(number))
        for candidate, evaluation in zip(candidates.values(), evaluations, strict=False):  # none: nobody could score it
            self._add(candidate.vector, float(evaluation.value), task_parts(evaluation, self._tasks))

    def _add(self, vector: Vector, value: float, parts: list[float]) -> None:
        params = params_of(self.variables, vector)
        with quiet():
            self._study.add_trial(
                create_trial(params=params, distributions=self._distributions, values=parts or [value])
            )
        self._vectors.append(vector)
        self._values.append(value)
        self._parts.append(parts)

    def _state(self) -> State:
        shape = (len(self._vectors), len(self.variables))
        parts = {"parts": np.array(self._parts).reshape(len(self._parts), len(self._tasks))} if self._tasks else {}
        return {
            "vectors": np.array(self._vectors).reshape(shape),
            "values": np.array(self._values, dtype=np.float64),
            **parts,
        }

    def _load(self, state: State) -> None:
        self._begin()
        vectors, values = cast(Vector, state["vectors"]), cast(Vector, state["values"])
        told = cast(Vector, state["parts"]).tolist() if self._tasks else [[]] * len(values)
        for vector, value, parts in zip(vectors, values, told, strict=True):
            self._add(self.variables.project(vector), float(value), parts)
