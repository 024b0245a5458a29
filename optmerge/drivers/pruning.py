"""Pruners: a trial sees few examples first, and more of them only while it is worth it.

    rungs = Rungs.make({"topic": 180}, rungs=3, reduction=4, seed=seed)     # 1/16, 1/4 and all, nested
    make_pruner(config).prunes(Look(rung=0, value=0.31, competing=[0.2, 0.4], ...))

Both rules are functions of values that the trajectory has, so that a resumed search prunes what an uninterrupted one
would.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import optuna
from optuna.pruners import WilcoxonPruner
from optuna.trial import TrialState, create_trial

from optmerge.config.drivers import OptunaConfig
from optmerge.drivers.optuna_quiet import quiet
from optmerge.errors import ConfigError
from optmerge.records import OBJECTIVE, Evaluation, Vector

_KEY = 0x52554E47  # what tells this use of the run's seed from all others


@dataclass(frozen=True)
class Rungs:
    """Growing subsets of the fit split, each inside the next; the last is all of it.

    Attributes:
        positions: For every rung, task -> positions in its fit split, ascending.
        sizes: Task -> examples in its fit split.
    """

    positions: tuple[Mapping[str, tuple[int, ...]], ...]
    sizes: Mapping[str, int]

    @classmethod
    def make(cls, sizes: Mapping[str, int], *, rungs: int, reduction: int, seed: np.random.SeedSequence) -> Rungs:
        """Rungs of which each has about ``reduction`` times the examples of the one before.

        Args:
            sizes: Task -> examples in its fit split.
            rungs: How many there are at most; rungs that would be equal are one.
            reduction: At least 2.
            seed: The run's; it is not changed.
        """
        generator = np.random.default_rng(
            np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, _KEY, len(sizes)))
        )
        orders = {task: generator.permutation(size) for task, size in sizes.items()}
        found: list[Mapping[str, tuple[int, ...]]] = []
        for rung in reversed(range(rungs)):
            counts = {task: math.ceil(size / reduction**rung) for task, size in sizes.items()}
            subset = {task: tuple(sorted(map(int, orders[task][:count]))) for task, count in counts.items()}
            if not found or subset != found[-1]:
                found.append(subset)
        return cls(tuple(found), dict(sizes))

    def __len__(self) -> int:
        return len(self.positions)

    def ids(self, rung: int) -> npt.NDArray[np.int64]:
        """int64[n], the examples of a rung among those of all tasks in their order."""
        ids, before = [], 0
        for task, size in self.sizes.items():
            ids += [before + position for position in self.positions[rung][task]]
            before += size
        return np.array(ids, dtype=np.int64)

    def costs(self, evaluation: Evaluation) -> Vector:
        """float64[n], each example's share of its task's part, in the order of `ids`."""
        assert evaluation.per_example is not None, "the candidate needs per_example"
        return np.concatenate([evaluation.per_example[task][OBJECTIVE] for task in self.sizes])


@dataclass(frozen=True, eq=False)
class Look:
    """What a pruner is told of a trial at a rung.

    Attributes:
        rung: Which one, from 0.
        value: The objective there.
        competing: What other trials had there, in order.
        ids: int64[n], its examples; empty where the pruner does not look at single ones.
        costs: float64[n], what they cost.
        best: float64[N], what all examples cost in the best trial so far; None where there is none.
    """

    rung: int
    value: float
    competing: Sequence[float]
    ids: npt.NDArray[np.int64]
    costs: Vector
    best: Vector | None


class Pruner(Protocol):
    """Says whether a trial is dropped."""

    per_example: bool
    """Whether it looks at single examples."""

    def prunes(self, look: Look) -> bool:
        """Whether the trial is dropped for what it was worth at a rung before the last."""


class Wilcoxon:
    """Drops a trial whose examples cost more than in the best trial, by the signed-rank test (Wilcoxon 1945).

    The test is that of Optuna's `WilcoxonPruner`, a step for every example. It is one-sided, at ``p_value`` for every
    rung, and drops nothing whose mean is below the best trial's.

    >>> pruner = Wilcoxon(p_value=0.1)
    >>> worse, better = np.full(8, 0.6), np.full(8, 0.2)
    >>> look = Look(0, 0.6, [], np.arange(8), worse + np.arange(8) / 80, np.full(32, 0.4))
    >>> pruner.prunes(look), pruner.prunes(Look(0, 0.2, [], look.ids, better, look.best))
    (True, False)
    """

    per_example = True

    def __init__(self, *, p_value: float) -> None:
        with quiet():
            self._pruner = WilcoxonPruner(p_threshold=p_value)

    def prunes(self, look: Look) -> bool:
        """Whether the test is sure that the trial is worse."""
        if look.best is None:
            return False
        with quiet():
            study = optuna.create_study(storage=optuna.storages.InMemoryStorage(), direction="minimize")
            study.add_trial(
                create_trial(value=float(look.best.mean()), intermediate_values=dict(enumerate(look.best.tolist())))
            )
            steps = dict(zip(look.ids.tolist(), look.costs.tolist(), strict=True))
            running = create_trial(state=TrialState.RUNNING, intermediate_values=steps)
            return self._pruner.prune(study, running)


class SuccessiveHalving:
    """Keeps a trial that is among the best 1 / ``reduction`` of all that reached its rung.

    The asynchronous rule (Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", algorithm 2): a
    trial is judged when it is there, against those before it. Of fewer than ``reduction`` only the best goes on.

    >>> pruner = SuccessiveHalving(reduction=2)
    >>> def at(value): return Look(0, value, [0.1, 0.4, 0.3], np.arange(0), np.empty(0), None)
    >>> pruner.prunes(at(0.2)), pruner.prunes(at(0.35))
    (False, True)
    """

    per_example = False

    def __init__(self, *, reduction: int) -> None:
        self.reduction = reduction

    def prunes(self, look: Look) -> bool:
        """Whether others there were better."""
        ranked = sorted([*look.competing, look.value])
        return look.value > ranked[max(1, len(ranked) // self.reduction) - 1]


def make_pruner(config: OptunaConfig) -> Pruner:
    """The pruner that the settings name, which is not ``none``.

    Raises:
        ConfigError: It needs scipy, which is not installed.
    """
    if config.pruner == "wilcoxon":
        if importlib.util.find_spec("scipy") is None:
            raise ConfigError(
                "driver.pruner is 'wilcoxon', which needs scipy: pip install 'optmerge[samplers]'. successive-halving "
                "needs nothing more."
            )
        return Wilcoxon(p_value=config.p_value)
    assert config.pruner == "successive-halving"
    return SuccessiveHalving(reduction=config.reduction)
