"""The objective: terms' raw means over examples, made into the one number that a search minimises.

    objective = Objective(config.objective, ["sentiment", "topic"], {"sentiment": 2, "topic": 20})
    objective.set_normalisers("fit", base_means)
    value, per_task = objective.combine("fit", means)

    value       = sum over tasks of weight[t] * per_task[t]; for the aggregate mean, weight[t] = w[t] / sum of w
    per_task[t] = sum over terms of weight * cost / divisor[t]
    cost        = the term's mean; 1 - mean where higher is better

The cost is the only place where a direction is turned round.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

from torch import Tensor

from optmerge.calibration.data import Kind
from optmerge.config.objectives import MeanConfig, ObjectiveConfig, TermConfig
from optmerge.errors import ConfigError, RunFailed, did_you_mean
from optmerge.objective.aggregate import task_weights
from optmerge.objective.agreement import Agreement
from optmerge.objective.base import ModelTerm, Need
from optmerge.objective.labelled import Accuracy, CrossEntropy
from optmerge.objective.registry import TERMS
from optmerge.records import SplitName

_LEAST_SHARE = 1e-3  # a base cost below this share of the tasks' mean is raised to it: such a task has nothing to gain

Number = TypeVar("Number", float, Tensor)


class Objective:
    """A weighted composition of terms over tasks.

    Attributes:
        terms: The terms, in the search file's order.
        needs: What any of them needs.
        labelled: Whether labels are read.
        differentiable: Whether every term has a gradient.
        shares: Each task's share of the mean over tasks; they sum to 1.
        needs_parts: Whether the tasks' weights depend on their parts, which must then be known before a backward pass.
    """

    def __init__(self, config: ObjectiveConfig, tasks: Sequence[str], num_labels: Mapping[str, int | None]) -> None:
        """Make the terms.

        Args:
            config: What the search file says.
            tasks: Names of the tasks.
            num_labels: Task -> classes of its head; None for language models, which share one vocabulary.

        Raises:
            ConfigError: A term is named twice, or task weights do not fit the tasks.
        """
        self._configs: dict[str, TermConfig] = {}
        for term in config.terms:
            if term.name in self._configs:
                raise ConfigError(
                    f"objective.terms names {term.name!r} twice; give it once, with the weight that you want."
                )
            self._configs[term.name] = term
        self.terms: list[ModelTerm] = [TERMS[name](term) for name, term in self._configs.items()]
        self._by_name = {term.name: term for term in self.terms}
        self.needs: frozenset[Need] = frozenset().union(*(term.needs for term in self.terms))
        self.labelled = "labels" in self.needs
        self.differentiable = all(term.differentiable for term in self.terms)
        self._num_labels = dict(num_labels)
        self.shares: Mapping[str, float] = _shares(config.task_weights, tasks)
        self.needs_parts = not isinstance(config.aggregate, MeanConfig)
        self._aggregate = config.aggregate
        self._divisors: dict[SplitName, dict[str, dict[str, float]]] = {}

    def layers(self, count: int) -> tuple[int, ...]:
        """The transformer layers, of ``count``, whose outputs any term reads; in order."""
        return tuple(sorted({layer for term in self.terms for layer in term.layers(count)}))

    @property
    def needs_base(self) -> bool:
        """Whether `set_normalisers` must be called before values can be combined."""
        return any(term.normalise == "base" for term in self._configs.values())

    def set_normalisers(self, split: SplitName, base_means: Mapping[str, Mapping[str, float]]) -> None:
        """Fix what a split's means are divided by where ``normalise`` is ``base``.

        Args:
            split: The split that the means are of.
            base_means: Task -> term -> mean of the base model, raw.

        Raises:
            RunFailed: The base model's mean is not finite.
        """
        divisors: dict[str, dict[str, float]] = {task: {} for task in self.shares}
        for name, config in self._configs.items():
            if config.normalise != "base":
                continue
            costs = {task: self._cost(name, base_means[task][name]) for task in self.shares}
            for task, cost in costs.items():
                if not math.isfinite(cost):
                    raise RunFailed(
                        f"The base model's {name} on task {task!r} ({split} split) is {cost}, so nothing "
                        "can be divided by it. Look at the base model on this data, or set `normalise: none` for the "
                        f"term {name}."
                    )
            least = _LEAST_SHARE * sum(costs.values()) / len(costs)
            for task, cost in costs.items():
                divisors[task][name] = max(cost, least) or 1.0
        self._divisors[split] = divisors

    def combine(self, split: SplitName, means: Mapping[str, Mapping[str, float]]) -> tuple[float, dict[str, float]]:
        """The objective's value and each task's part, before task weights.

        Args:
            split: The split that the means are of.
            means: Task -> term -> mean over examples, raw.

        Raises:
            ValueError: The split's normalisers are needed and not set.
        """
        per_task = self._parts(split, means)
        weights = task_weights(self._aggregate, per_task, self.shares)
        return sum(weights[task] * part for task, part in per_task.items()), per_task

    def weigh(self, split: SplitName, means: Mapping[str, Mapping[str, float]]) -> Mapping[str, float]:
        """Task -> the derivative of the value by the task's part, where the means are these.

        Raises:
            ValueError: The split's normalisers are needed and not set.
        """
        return task_weights(self._aggregate, self._parts(split, means), self.shares)

    def loss(
        self, split: SplitName, task: str, per_example: Mapping[str, Tensor], count: int, *, weight: float
    ) -> Tensor:
        """A batch's additive share of the value; over all batches and tasks the shares sum to it.

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
            * (weight * config.weight / self._divisor(split, task, name) / count)
            for name, config in self._configs.items()
        ]
        total = shares[0]
        for share in shares[1:]:
            total = total + share
        return total

    def _parts(self, split: SplitName, means: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        return {
            task: sum(
                config.weight * self._cost(name, means[task][name]) / self._divisor(split, task, name)
                for name, config in self._configs.items()
            )
            for task in self.shares
        }

    def _cost(self, name: str, value: Number) -> Number:
        return 1.0 - value if self._by_name[name].higher_is_better else value

    def _divisor(self, split: SplitName, task: str, name: str) -> float:
        normalise = self._configs[name].normalise
        if normalise == "none":
            return 1.0
        if normalise == "log-classes":
            classes = self._num_labels[task]
            return 1.0 if classes is None or classes < 2 else math.log(classes)
        if split not in self._divisors:
            raise ValueError(f"{name} is divided by the base model's, and that of the {split} split is not set")
        return self._divisors[split][task][name]


def report_metrics(kind: Kind, labelled: bool) -> list[ModelTerm]:
    """What the report shows beside the objective: accuracy and cross-entropy where there are labels, agreement always.

    Args:
        kind: What the experts are; both kinds have the same metrics (per example, or per scored token).
        labelled: Whether the report split has labels.
    """
    return [*([Accuracy(), CrossEntropy()] if labelled else []), Agreement()]


def _shares(weights: Mapping[str, float], tasks: Sequence[str]) -> dict[str, float]:
    """Each task's share of the mean over tasks."""
    for task in weights:
        if task not in tasks:
            raise ConfigError(f"objective.task_weights names {task!r}, which is not a task.{did_you_mean(task, tasks)}")
    given = {task: float(weights.get(task, 1.0)) for task in tasks}
    total = sum(given.values())
    if min(given.values(), default=0.0) < 0 or total <= 0:
        raise ConfigError(f"objective.task_weights are {given}; expected weights of 0 or more, not all 0.")
    return {task: weight / total for task, weight in given.items()}
