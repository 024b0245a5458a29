"""Optuna's samplers with a pruner: a generation is a rung of a trial, the last one of which has all examples.

In: the value of the last rung, and what its examples cost. Out: the same vector with more examples, or the next one.

    driver = PrunedOptunaDriver(OptunaConfig(pruner="wilcoxon"), variables, seed=seed, fit_sizes=sizes, budget=100)

A trial that was dropped stays in the study as a pruned one, with what its rungs were worth: tpe ranks it behind those
that went further. The start, as the first trial, has nothing to be compared with, and goes all the way.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from optuna.trial import TrialState, create_trial

from optmerge.drivers.distributions import params_of
from optmerge.drivers.optuna_driver import OptunaDriver
from optmerge.drivers.optuna_quiet import quiet
from optmerge.drivers.pruning import Look, Rungs, make_pruner
from optmerge.drivers.state import State
from optmerge.records import Candidate, Evaluation, Need, Vector


class PrunedOptunaDriver(OptunaDriver):
    """The samplers of `OptunaDriver`, and a pruner that may drop a trial at every rung but the last.

    >>> import numpy as np
    >>> from optmerge.config.drivers import OptunaConfig
    >>> from optmerge.drivers import Variables
    >>> variables = Variables(("a", "b"), lower=[0, 0], upper=[1, 1], start=[0.3, 0.3])
    >>> config = OptunaConfig(pruner="successive-halving")
    >>> driver = PrunedOptunaDriver(config, variables, seed=np.random.SeedSequence(0), fit_sizes={"t": 32}, budget=9)
    >>> for value in (0.5, 0.4, 0.6, 0.9):
    ...     candidates = driver.ask()
    ...     driver.tell(candidates, [Evaluation(value)])
    ...     print(len((candidates[0].examples or {"t": range(32)})["t"]), driver.info()["pruned"])
    2 0.0
    8 0.0
    32 0.0
    2 1.0
    """

    def _set_up(self) -> None:
        config = self.config
        self._rungs = Rungs.make(self.fit_sizes, rungs=config.rungs, reduction=config.reduction, seed=self.seed)
        self._pruner = make_pruner(config)
        super()._set_up()

    @property
    def overlaps(self) -> bool:
        """Not: what a rung says decides about the next."""
        return False

    def info(self) -> dict[str, float]:
        """``trials`` so far, how many were ``pruned``, and the ``best`` value among the others."""
        whole = [values[-1] for values in self._told if len(values) == len(self._rungs)]
        best = {"best": min(whole)} if whole else {}
        return {"trials": float(len(self._told)), "pruned": float(len(self._told) - len(whole))} | best

    def prunes(self, candidate: Candidate, evaluation: Evaluation) -> bool:
        """What `tell` will do with the vector."""
        rung = len(self._reached)
        if rung == len(self._rungs) - 1:
            return False
        single = self._pruner.per_example
        return self._pruner.prunes(
            Look(
                rung=rung,
                value=evaluation.value,
                competing=[values[rung] for values in self._told if len(values) > rung],
                ids=self._rungs.ids(rung) if single else np.empty(0, dtype=np.int64),
                costs=self._rungs.costs(evaluation) if single else np.empty(0),
                best=self._best_costs,
            )
        )

    def _begin(self) -> None:
        super()._begin()
        self._told: list[list[float]] = []  # trial -> its values by rung
        self._begun = 0  # trials, those that nobody could score among them
        self._vector: Vector | None = None  # of the trial that is between two rungs
        self._reached: list[float] = []  # its values so far
        self._best_costs: Vector | None = None  # of all examples, in the best trial

    def _ask(self) -> list[Candidate]:
        vector = self._propose(self._begun) if self._vector is None else self._vector
        rung = len(self._reached)
        last = rung == len(self._rungs) - 1
        needs: frozenset[Need] = frozenset({"value", "per_example"} if self._pruner.per_example else {"value"})
        return [
            self.candidate(vector, needs=needs, examples=None if last else self._rungs.positions[rung], rung=not last)
        ]

    def _tell(self, evaluations: list[Evaluation]) -> None:
        if self._vector is None:
            self._close_trial(self._asked[1])
        vector = self._asked[0] if self._vector is None else self._vector
        dropped = not evaluations or self.prunes(self.candidate(vector), evaluations[0])
        if evaluations:
            self._reached.append(float(evaluations[0].value))
        if not dropped and len(self._reached) < len(self._rungs):
            self._vector = vector
            return
        if evaluations:
            best = min((values[-1] for values in self._told if len(values) == len(self._rungs)), default=np.inf)
            if not dropped and self._pruner.per_example and self._reached[-1] < best:
                self._best_costs = self._rungs.costs(evaluations[0])
            self._add_rungs(vector, self._reached)
        self._begun += 1
        self._vector, self._reached = None, []

    def _add_rungs(self, vector: Vector, values: list[float]) -> None:
        whole = len(values) == len(self._rungs)
        with quiet():
            self._study.add_trial(
                create_trial(
                    state=TrialState.COMPLETE if whole else TrialState.PRUNED,
                    params=params_of(self.variables, vector),
                    distributions=self._distributions,
                    value=values[-1] if whole else None,
                    intermediate_values=dict(enumerate(values)),
                )
            )
        self._vectors.append(vector)
        self._told.append(values)

    def _state(self) -> State:
        shape = (len(self._vectors), len(self.variables))
        return {
            "vectors": np.array(self._vectors).reshape(shape),
            "told": [np.array(values) for values in self._told],
            "begun": self._begun,
            "vector": None if self._vector is None else np.array(self._vector),
            "reached": np.array(self._reached, dtype=np.float64),
            "best_costs": self._best_costs,
        }

    def _load(self, state: State) -> None:
        self._begin()
        for vector, values in zip(cast(Vector, state["vectors"]), cast("list[Vector]", state["told"]), strict=True):
            self._add_rungs(self.variables.project(vector), values.tolist())
        self._begun = cast(int, state["begun"])
        vector = cast("Vector | None", state["vector"])
        self._vector = None if vector is None else self.variables.project(vector)
        self._reached = cast(Vector, state["reached"]).tolist()
        self._best_costs = cast("Vector | None", state["best_costs"])
