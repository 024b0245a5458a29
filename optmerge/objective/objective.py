"""The objective: terms' raw means over examples, made into the one number that a search minimises.

    objective = Objective(config.objective, ["sentiment", "topic"], {"sentiment": 2, "topic": 20})
    objective.set_normalisers("fit", base_means)
    value, per_task = objective.combine("fit", means)

    value       = sum over tasks of weight[t] * per_task[t] + sum over other terms of weight * cost
                  for the aggregate mean, weight[t] = w[t] / sum of w
    per_task[t] = sum over model terms of weight * cost / divisor[t]
    cost        = the term's value; 1 - value where higher is better

The other terms look at the coefficients or at the whole model, once and not per task; what they give is called the
value's parts. The cost is the only place where a direction is turned round.

The select split may be judged by other terms than the driver is told about: ``objective.on("select")``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from optmerge.config.drivers import GRADIENT_DRIVERS, NO_GRADIENT_DRIVERS
from optmerge.config.objectives import (
    ExpertKLConfig,
    HiddenAlignmentConfig,
    JensenShannonConfig,
    MeanConfig,
    Normaliser,
    ObjectiveConfig,
    TermConfig,
    no_gradient,
)
from optmerge.errors import ConfigError, RunFailed, did_you_mean
from optmerge.merging.coefficients import Table
from optmerge.objective.aggregate import task_weights
from optmerge.objective.base import ModelTerm, Need
from optmerge.objective.coefficient import CoefficientTerm
from optmerge.objective.geometry import Geometry
from optmerge.objective.kept import Keep
from optmerge.objective.registry import AnyTerm, make_term
from optmerge.objective.whole import WholeModelTerm
from optmerge.records import SplitName

_ROUNDING = 1e-4  # how far below 0 a base cost may be that is 0 but for rounding
_LEAST_SHARE = 1e-3  # a base cost below this share of the tasks' mean is raised to it: such a task has nothing to gain

_JUDGED: tuple[SplitName, ...] = ("fit", "select")

Normalisers = Mapping[SplitName, Mapping[str, Mapping[str, float]]]
"""Split -> task -> term -> what its mean is divided by."""
Number = TypeVar("Number", float, npt.NDArray[np.float64], Tensor)


class Objective:
    """A weighted composition of terms over tasks.

    Attributes:
        configs: The settings of every term by the term's name, in the search file's order.
        terms: The terms that judge the model on calibration data.
        regularisers: The terms of the coefficients.
        whole: The terms of the whole model.
        needs: What any of the model's terms needs.
        labelled: Whether labels are read, on the select split too.
        answered: Names of the terms that read labels or answers, on either split.
        without_gradient: Names of the terms that have none.
        shares: Each task's share of the mean over tasks; they sum to 1.
        needs_parts: Whether the tasks' weights depend on their parts, which must then be known before a backward pass.
    """

    def __init__(
        self,
        config: ObjectiveConfig,
        tasks: Sequence[str],
        num_labels: Mapping[str, int | None],
        *,
        key: str = "terms",
    ) -> None:
        """Make the terms.

        Args:
            config: What the search file says.
            tasks: Names of the tasks.
            num_labels: Task -> classes of its head; None for language models, which share one vocabulary.
            key: Where the terms stand in the search file's objective.

        Raises:
            ConfigError: A term is named twice, no term judges the model, or task weights do not fit the tasks.
        """
        self.configs: dict[str, TermConfig] = {}
        self._by_name: dict[str, AnyTerm] = {}
        for settings in config.terms:
            term = make_term(settings)
            if term.name in self.configs:
                raise ConfigError(
                    f"objective.{key} names {term.name!r} twice; give it once, with the weight that you want."
                )
            self.configs[term.name] = settings
            self._by_name[term.name] = term
        made = list(self._by_name.values())
        self.terms = [term for term in made if isinstance(term, ModelTerm)]
        self.regularisers = [term for term in made if isinstance(term, CoefficientTerm)]
        self.whole = [term for term in made if isinstance(term, WholeModelTerm)]
        _require_judges(self._by_name, key)
        self._selection: Objective = (
            Objective(
                config.model_copy(update={"terms": config.select, "select": None}), tasks, num_labels, key="select"
            )
            if config.select is not None
            else self
        )
        self.needs: frozenset[Need] = frozenset().union(*(term.needs for term in self.terms))
        self.labelled: bool = "labels" in self.needs or (self._selection is not self and self._selection.labelled)
        answered = [name for name, term in self._by_name.items() if "labels" in getattr(term, "needs", ())]
        answered += [term.name for term in self.whole if self.configs[term.name].labelled]
        self.answered: tuple[str, ...] = tuple(
            dict.fromkeys([*answered, *(self._selection.answered if self._selection is not self else ())])
        )
        self.without_gradient = tuple(
            term.name for term in made if isinstance(term, WholeModelTerm) or not term.differentiable
        )
        self._num_labels = dict(num_labels)
        self.shares: Mapping[str, float] = _shares(config.task_weights, tasks)
        self.needs_parts = not isinstance(config.aggregate, MeanConfig)
        self._aggregate = config.aggregate
        self._divisors: dict[SplitName, dict[str, dict[str, float]]] = {}

    def on(self, split: SplitName) -> Objective:
        """The composition that judges a split: this one, or the one that chooses the best iterate on select."""
        return self._selection if split == "select" else self

    @property
    def differentiable(self) -> bool:
        """Whether every term has a gradient."""
        return not self.without_gradient

    def require_gradient(self, driver: str) -> None:
        """Refuse a driver that follows a gradient where some term has none.

        Raises:
            ConfigError: It is so.
        """
        if driver in GRADIENT_DRIVERS and self.without_gradient:
            raise ConfigError(no_gradient(driver, self.without_gradient, drivers=NO_GRADIENT_DRIVERS))

    @property
    def two_passes(self) -> bool:
        """Whether a gradient takes a pass without one first: the tasks' parts or the means of summaries are needed."""
        return self.needs_parts or any(term.summary for term in self.terms)

    def keep(self, count: int) -> Keep:
        """What must be kept of the experts' outputs for these terms, those of select, and the report's metrics.

        Where terms differ, the most that any of them wants is kept: all classes, or all dimensions, if one wants so.

        Args:
            count: How many transformer layers there are.
        """
        both = [*self.configs.values(), *self.on("select").configs.values()]
        compared = [config for config in both if isinstance(config, ExpertKLConfig | JensenShannonConfig)]
        compared = compared or [ExpertKLConfig()]
        classes = [config.top_k for config in compared]
        temperatures = {config.temperature for config in compared if isinstance(config, ExpertKLConfig)}
        dimensions = [config.project for config in both if isinstance(config, HiddenAlignmentConfig)]
        return Keep(
            None if None in classes else max(k for k in classes if k is not None),
            tuple(sorted({*self.layers(count), *self.on("select").layers(count)})),
            None if None in dimensions else max((d for d in dimensions if d is not None), default=None),
            samples=max(config.tail_samples for config in compared),
            temperatures=tuple(sorted(temperatures - {1.0})),
        )

    def layers(self, count: int) -> tuple[int, ...]:
        """The transformer layers, of ``count``, whose outputs any term reads; in order."""
        return tuple(sorted({layer for term in self.terms for layer in term.layers(count)}))

    @property
    def needs_base(self) -> bool:
        """Whether `set_normalisers` must be called before values can be combined."""
        return any(self._normaliser(term.name) == "base" for term in self.terms)

    def set_normalisers(self, split: SplitName, base_means: Mapping[str, Mapping[str, float]]) -> None:
        """Fix what a split's means are divided by where ``normalise`` is ``base``.

        Args:
            split: The split that the means are of.
            base_means: Task -> term -> mean of the base model, raw.

        Raises:
            RunFailed: The base model's mean is not finite, or below 0: dividing by it would turn the term round.
        """
        divisors: dict[str, dict[str, float]] = {task: {} for task in self.shares}
        for name in (term.name for term in self.terms):
            if self._normaliser(name) != "base":
                continue
            costs = {task: self._cost(name, base_means[task][name]) for task in self.shares}
            for task, cost in costs.items():
                if not -_ROUNDING < cost < math.inf:
                    raise RunFailed(
                        f"The base model's {name} on task {task!r} ({split} split) is {cost}, so nothing "
                        "can be divided by it: expected a finite number of 0 or more. Look at the base model on this "
                        f"data, or set `normalise: none` for the term {name}."
                    )
            least = _LEAST_SHARE * max(0.0, sum(costs.values())) / len(costs)
            for task, cost in costs.items():
                divisors[task][name] = max(cost, least) or 1.0
        self._divisors[split] = divisors

    def normalisers(self) -> Normalisers:
        """What fit and select are divided by, as far as it is set: all that `set_normalisers` has changed."""
        return {split: self.on(split)._divisors[split] for split in _JUDGED if split in self.on(split)._divisors}

    def restore(self, normalisers: Normalisers) -> None:
        """Divide by what `normalisers` gave elsewhere."""
        for split, divisors in normalisers.items():
            self.on(split)._divisors[split] = {task: dict(terms) for task, terms in divisors.items()}

    def combine(
        self,
        split: SplitName,
        means: Mapping[str, Mapping[str, float]],
        parts: Mapping[str, float] | None = None,
    ) -> tuple[float, dict[str, float]]:
        """The objective's value and each task's part, before task weights.

        Args:
            split: The split that the means are of.
            means: Task -> term -> mean over examples, raw.
            parts: Term of the coefficients or the whole model -> its value, raw; those that are not here do not count.

        Raises:
            ValueError: The split's normalisers are needed and not set.
        """
        per_task = self._parts(split, means)
        weights = task_weights(self._aggregate, per_task, self.shares)
        value = sum(weights[task] * part for task, part in per_task.items())
        for name, part in (parts or {}).items():
            value += self.configs[name].weight * self._cost(name, part)
        return value, per_task

    def weigh(self, split: SplitName, means: Mapping[str, Mapping[str, float]]) -> Mapping[str, float]:
        """Task -> the derivative of the value by the task's part, where the means are these.

        Raises:
            ValueError: The split's normalisers are needed and not set.
        """
        return task_weights(self._aggregate, self._parts(split, means), self.shares)

    def regularise(
        self, coefficients: Table, geometry: Geometry, *, gradient: bool
    ) -> tuple[dict[str, float], Table | None]:
        """What the terms of the coefficients say: their raw values, and the slope of their weighted sum.

        Args:
            coefficients: float64[G, D] of the search space.
            geometry: Of the table.
            gradient: Whether the slope is wanted; every term must then be differentiable.

        Returns:
            Term -> value, and float64[G, D] (None where it is not wanted).
        """
        leaf = torch.tensor(coefficients, dtype=torch.float64, requires_grad=gradient)
        with torch.set_grad_enabled(gradient):
            values = {term.name: term.value(leaf, geometry) for term in self.regularisers}
        slope = None
        if gradient:
            total = torch.stack([self.configs[name].weight * value for name, value in values.items()]).sum()
            # A term may not depend on what is given: an anchor of frozen coefficients.
            (found,) = torch.autograd.grad(total, leaf, allow_unused=True) if total.requires_grad else (None,)
            slope = np.zeros_like(coefficients) if found is None else found.numpy()
        return {name: float(value.detach()) for name, value in values.items()}, slope

    def loss(
        self, split: SplitName, task: str, per_example: Mapping[str, Tensor], count: int, *, weight: float
    ) -> Tensor:
        """A batch's additive share of the tasks' part of the value; over all batches and tasks the shares sum to it.

        Where a summary term's statistics stand multiplied by the slope of its `finish`, the sum is not the value, but
        has its gradient.

        Args:
            split: The split that is looked at.
            task: The batch's task.
            per_example: Term -> [B].
            count: Examples of this task over all batches of the evaluation.
            weight: Of the task: its share of the mean, or what `weigh` says.

        Returns:
            A scalar on the values' device, differentiable, made without synchronising with it.

        Raises:
            ValueError: The split's normalisers are needed and not set.
        """
        shares = [
            self._cost(name, per_example[name]).sum()
            * (weight * self.configs[name].weight / self._divisor(split, task, name) / count)
            for name in (term.name for term in self.terms)
        ]
        total = shares[0]
        for share in shares[1:]:
            total = total + share
        return total

    def by_example(
        self, split: SplitName, arrays: Mapping[str, Mapping[str, npt.NDArray[np.float64]]]
    ) -> dict[str, npt.NDArray[np.float64]]:
        """Task -> float64[n], every example's share of the task's part, which is their mean.

        Args:
            split: The split that is looked at.
            arrays: Task -> term -> float64[n], raw, of every term.

        Raises:
            ValueError: The split's normalisers are needed and not set.
        """
        shares: dict[str, npt.NDArray[np.float64]] = {}
        for task, values in arrays.items():
            weighted = [
                self.configs[name].weight * self._cost(name, values[name]) / self._divisor(split, task, name)
                for name in (term.name for term in self.terms)
            ]
            shares[task] = np.sum(weighted, axis=0, dtype=np.float64)
        return shares

    def _parts(self, split: SplitName, means: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        return {
            task: sum(
                self.configs[name].weight * self._cost(name, means[task][name]) / self._divisor(split, task, name)
                for name in (term.name for term in self.terms)
            )
            for task in self.shares
        }

    def _cost(self, name: str, value: Number) -> Number:
        term = self._by_name[name]
        return 1.0 - value if not isinstance(term, CoefficientTerm) and term.higher_is_better else value

    def _normaliser(self, name: str) -> Normaliser:
        normalise: Normaliser = getattr(self.configs[name], "normalise", "none")
        return normalise

    def _divisor(self, split: SplitName, task: str, name: str) -> float:
        normalise = self._normaliser(name)
        if normalise == "none":
            return 1.0
        if normalise == "log-classes":
            classes = self._num_labels[task]
            return 1.0 if classes is None or classes < 2 else math.log(classes)
        if split not in self._divisors:
            raise ValueError(f"{name} is divided by the base model's, and that of the {split} split is not set")
        return self._divisors[split][task][name]


def _require_judges(terms: Mapping[str, AnyTerm], key: str) -> None:
    """Refuse terms of the coefficients where nothing else is, and where they would not count: on select.

    Raises:
        ConfigError: It is so.
    """
    blind = [name for name, term in terms.items() if isinstance(term, CoefficientTerm)]
    if blind and (key == "select" or len(blind) == len(terms)):
        why = (
            "and does not count on the select split" if key == "select" else "so that nothing says what a good merge is"
        )
        raise ConfigError(
            f"objective.{key}: {', '.join(blind)} looks at the coefficients only, {why}. Name a term that judges the "
            f"model{' instead' if key == 'select' else ' too'}, such as expert-kl."
        )


def _shares(weights: Mapping[str, float], tasks: Sequence[str]) -> dict[str, float]:
    """Each task's share of the mean over tasks."""
    for task in weights:
        if task not in tasks:
            raise ConfigError(f"objective.task_weights names {task!r}, which is not a task.{did_you_mean(task, tasks)}")
    given = {task: float(weights.get(task, 1.0)) for task in tasks}
    total = sum(given.values())
    if min(given.values(), default=0.0) < 0 or not 0 < total < math.inf:
        raise ConfigError(f"objective.task_weights are {given}; expected finite weights of 0 or more, not all 0.")
    return {task: weight / total for task, weight in given.items()}
