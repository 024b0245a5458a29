"""Optuna's samplers for several objectives: each task's part of the objective is one of its own.

NSGA-II (Deb et al. 2002), NSGA-III (Deb & Jain 2014) and multi-objective TPE (Ozaki et al. 2022), fresh for every
trial over the trials so far, like the others in ``optmerge.drivers.samplers``.

    parts = task_parts(evaluation, ("code", "news"))     # what the study is told: one value per task
    study.sampler = make_multi_objective(config, distributions, seed=seed, trial=12, first=4, tasks=2)

Optuna keeps its genetic algorithms' books (which generation a trial is of, who its parents may be) beside the trials.
Here all of it follows from the trials' order and the run's seed, so that a study that was made again goes on exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseGASampler, BaseSampler, NSGAIIISampler, NSGAIISampler, TPESampler
from optuna.samplers.nsgaii import PolynomialMutation, SBXCrossover
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from optmerge.config.drivers import OptunaConfig
from optmerge.config.several_objectives import SAMPLERS
from optmerge.errors import ConfigError
from optmerge.records import Evaluation

POPULATION = 20  # trials in a generation, where the settings do not say
SPREAD = 20.0  # distribution index of crossover and mutation in both papers: children stay near their parents


def objectives_of(config: OptunaConfig, fit_sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The tasks whose parts are objectives of their own; none for a sampler that minimises one value.

    Raises:
        ConfigError: The sampler needs tasks and there is none.
    """
    if config.sampler not in SAMPLERS:
        return ()
    if not fit_sizes:
        raise ConfigError(
            f"driver.sampler is {config.sampler!r}, which minimises each task's part, and no task is known."
        )
    return tuple(fit_sizes)


def task_parts(evaluation: Evaluation, tasks: Sequence[str]) -> list[float]:
    """Each task's part of the objective, in the order of ``tasks``.

    Raises:
        ValueError: A part is missing or not finite.
    """
    parts = [float(evaluation.per_task.get(task, math.nan)) for task in tasks]
    if not all(map(math.isfinite, parts)):
        raise ValueError(f"tell got {dict(evaluation.per_task)}; expected a finite part for each of {', '.join(tasks)}")
    return parts


def make_multi_objective(
    config: OptunaConfig,
    distributions: Mapping[str, BaseDistribution],
    *,
    seed: np.random.SeedSequence,
    trial: int,
    first: int,
    tasks: int,
) -> BaseSampler:
    """The sampler of one trial.

    Args:
        config: Which of `SAMPLERS`, and its settings.
        distributions: Every variable's, as the study is asked for them; floats.
        seed: The run's; it is not changed.
        trial: The trial's number, from 1; 0 is the start.
        first: How many trials are given (the start and the known recipes). The genetic algorithms count them as
            members of their first generation, multi-objective TPE does not count them as startup.
        tasks: How many objectives there are.
    """
    if config.sampler == "motpe":
        return TPESampler(
            seed=_number(seed, trial),
            n_startup_trials=config.startup + first,
            multivariate=config.multivariate,
            group=config.group,
        )
    made = Nsga2 if config.sampler == "nsga2" else Nsga3
    return made(distributions, root=seed, key=(trial,), population=config.population or POPULATION, tasks=tasks)


class _Replayed(BaseGASampler):
    """A genetic algorithm whose books follow from the study's completed trials, in their order.

    Args:
        distributions: Every variable's.
        root: The run's seed.
        key: Which of its children this sampler draws from.
        population: Trials in a generation.
        tasks: How many objectives there are.
    """

    def __init__(
        self,
        distributions: Mapping[str, BaseDistribution],
        *,
        root: np.random.SeedSequence,
        key: tuple[int, ...],
        population: int,
        tasks: int,
    ) -> None:
        self._distributions = dict(distributions)
        self._root = root
        self._population = population
        self._tasks = tasks
        super().__init__(  # type: ignore[call-arg]  # of Optuna's sampler, the next base of each class below
            population_size=population,
            crossover=SBXCrossover(eta=SPREAD),
            mutation=PolynomialMutation(eta=SPREAD),
            seed=_number(root, *key),
            **self._selection(),
        )

    def _selection(self) -> dict[str, Any]:
        """Further arguments of Optuna's sampler."""
        return {}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All variables, at once."""
        return dict(self._distributions)

    def get_trial_generation(self, study: Study, trial: FrozenTrial) -> int:
        """How many whole generations are complete."""
        return len(_complete(study)) // self._population

    def get_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        """The completed trials of a generation."""
        return _complete(study)[generation * self._population : (generation + 1) * self._population]

    def select_parent(self, study: Study, generation: int) -> list[FrozenTrial]:
        """Who may have children in a generation, in the trials' order: what Optuna gives when it remembers them.

        Ties are drawn from the generation's own seed, so it does not matter at which trial, or how often, this is
        asked.
        """
        chooser = type(self)(
            self._distributions, root=self._root, key=(0, generation), population=self._population, tasks=self._tasks
        )
        chosen = super(_Replayed, chooser).select_parent(study, generation)  # type: ignore[safe-super]
        return sorted(chosen, key=lambda trial: trial.number)


class Nsga2(_Replayed, NSGAIISampler):
    """NSGA-II: ranks by non-domination, then by crowding distance."""


class Nsga3(_Replayed, NSGAIIISampler):
    """NSGA-III: ranks by non-domination, then by niches around reference points on the simplex."""

    def _selection(self) -> dict[str, Any]:
        return {"dividing_parameter": divisions(self._tasks, self._population)}


def divisions(tasks: int, population: int) -> int:
    """Into how many parts each axis of the simplex is divided: as many as give no more points than the population.

    There are C(tasks + p - 1, p) reference points of p divisions (Das & Dennis 1998), and a population should be
    about as large (Deb & Jain 2014, section IV-B).

    >>> divisions(2, 20), divisions(4, 20), divisions(8, 20)
    (19, 3, 1)
    """
    parts = 1
    while tasks > 1 and math.comb(tasks + parts, parts + 1) <= population:
        parts += 1
    return parts


def _complete(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _number(root: np.random.SeedSequence, *key: int) -> int:
    child = np.random.SeedSequence(root.entropy, spawn_key=(*root.spawn_key, *key))
    return int(child.generate_state(1)[0])
