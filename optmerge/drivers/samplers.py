"""Optuna's samplers by the settings of a search, fresh for every trial.

    study.sampler = make_sampler(config, distributions, seed=seed, trial=12, first=4)

A sampler that is made for trial 12 knows nothing but the run's seed, the number 12 and the study's trials, so that a
study that was made again from its trials goes on exactly.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from optmerge.config.drivers import OptunaConfig
from optmerge.drivers.multi_objective import make_multi_objective
from optmerge.errors import ConfigError

NEED_SCIPY = frozenset({"gp", "sobol"})
GP_MOST = 200  # variables; its kernel has a length scale for each, and fitting them takes seconds a trial from there on


def check_sampler(config: OptunaConfig, dimension: int) -> None:
    """Refuse what cannot be sampled here.

    Raises:
        ConfigError: scipy is not installed, or there are more variables than a Gaussian process is for.
    """
    if config.sampler in NEED_SCIPY and importlib.util.find_spec("scipy") is None:
        raise ConfigError(
            f"driver.sampler is {config.sampler!r}, which needs scipy: pip install 'optmerge[samplers]'. "
            "tpe and random need nothing more."
        )
    if config.sampler == "gp" and dimension > GP_MOST:
        raise ConfigError(
            f"driver.sampler is 'gp', which takes at most {GP_MOST} variables, but the search space has {dimension:,}. "
            "Use tpe, the driver cma, or a coarser space."
        )


def make_sampler(
    config: OptunaConfig,
    distributions: Mapping[str, BaseDistribution],
    *,
    seed: np.random.SeedSequence,
    trial: int,
    first: int,
    tasks: int = 0,
) -> BaseSampler:
    """The sampler of one trial.

    Args:
        config: Which sampler, and its settings.
        distributions: Every variable's, as the study is asked for them.
        seed: The run's; it is not changed.
        trial: The trial's number, from 1; 0 is the start.
        first: How many trials are given (the start and the known recipes): they do not count as startup.
        tasks: How many objectives there are, for the samplers that have several.
    """
    if config.sampler == "sobol":
        return SobolSampler(distributions, seed=_number(seed), index=trial - first)
    own = _number(np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, trial)))
    startup = config.startup + first
    match config.sampler:
        case "random":
            return RandomSampler(seed=own)
        case "gp":
            return GPSampler(seed=own, n_startup_trials=startup)
        case "tpe":
            return TPESampler(seed=own, n_startup_trials=startup, multivariate=config.multivariate, group=config.group)
        case "nsga2" | "nsga3" | "motpe":
            return make_multi_objective(config, distributions, seed=seed, trial=trial, first=first, tasks=tasks)


class SobolSampler(BaseSampler):
    """One point of a scrambled Sobol' sequence (Sobol' 1967; scrambling: Matoušek 1998), by its number.

    Optuna's own `QMCSampler` draws from the same sequence, and counts in the study's storage how far it is. A study
    that is made again from its trials lacks that count, so the number is an argument here.

    Args:
        distributions: Every variable's.
        seed: Of the scrambling, the same for all points of a sequence.
        index: Which point, from 0.

    >>> box = {"a": FloatDistribution(0, 1), "b": FloatDistribution(-1, 1)}
    >>> points = [SobolSampler(box, seed=0, index=index).point() for index in range(4)]
    >>> sorted(int(4 * point["a"]) for point in points)  # one in each quarter
    [0, 1, 2, 3]
    """

    def __init__(self, distributions: Mapping[str, BaseDistribution], *, seed: int, index: int) -> None:
        self.distributions = distributions
        self.seed = seed
        self.index = index

    def point(self) -> dict[str, Any]:
        """Variable -> its value; whole numbers and choices have equal shares of the coordinate."""
        from scipy.stats import qmc

        engine = qmc.Sobol(len(self.distributions), scramble=True, rng=np.random.default_rng(self.seed))
        if self.index:
            engine.fast_forward(self.index)
        shares = engine.random(1)[0].tolist()
        return {name: _at(share, box) for share, (name, box) in zip(shares, self.distributions.items(), strict=True)}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All variables, at once."""
        return dict(self.distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The point."""
        return self.point()

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Not reached, as every variable is in the point."""
        raise NotImplementedError(f"{param_name} is no coordinate of the sequence")


def _at(share: float, box: BaseDistribution) -> Any:
    """The value that lies at a share, 0 up to (not with) 1, of a distribution."""
    if isinstance(box, CategoricalDistribution):
        return box.choices[int(share * len(box.choices))]
    if isinstance(box, IntDistribution):
        return box.low + int(share * (box.high - box.low + 1))
    assert isinstance(box, FloatDistribution), "variables have no other distribution"
    return box.low + share * (box.high - box.low)


def _number(seed: np.random.SeedSequence) -> int:
    return int(seed.generate_state(1)[0])
