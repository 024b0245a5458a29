"""The evaluator: puts coefficients into the resident model and judges it on one split.

    evaluator = Evaluator(problem, teachers)
    measurement = evaluator.measure(table, "select", objective=True)
    evaluation = evaluator.evaluate(table, "fit", gradient=True)

One synchronisation with the device per evaluation: all sums stay on it until the end.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from optmerge.errors import OptmergeError
from optmerge.merging.coefficients import Table
from optmerge.merging.engine import Engine, GradientGatherer
from optmerge.objective import report_metrics
from optmerge.records import Evaluation, SplitName, Vector
from optmerge.runner.teachers import Teachers

if TYPE_CHECKING:
    from optmerge.calibration.data import Batch, Kind
    from optmerge.objective.base import ModelTerm
    from optmerge.runner.problem import Problem

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measurement:
    """Raw means of terms and metrics, before any normalisation.

    Attributes:
        means: Task -> term or metric name -> mean over examples, in the term's unit.
        per_example: Task -> name -> float64[n], when asked for.
        table_gradient: float64[G, D], d(objective)/d(coefficients), when asked for.
        seconds: ``merge`` and ``evaluate``.
    """

    means: Mapping[str, Mapping[str, float]]
    per_example: Mapping[str, Mapping[str, Vector]] = field(default_factory=dict)
    table_gradient: Table | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)


class Evaluator:
    """Judges tables of coefficients over all directions of a problem (`Problem.expand` makes one from a vector)."""

    def __init__(self, problem: Problem, teachers: Teachers) -> None:
        self.problem = problem
        self.teachers = teachers
        self.engine: Engine = problem.engine

    def evaluate(
        self,
        table: Table,
        split: SplitName,
        *,
        examples: Mapping[str, Sequence[int]] | None = None,
        gradient: bool = False,
        metrics: bool = False,
    ) -> Evaluation:
        """Judge one table; any failure but a user's mistake or a bug in the caller becomes a failed `Evaluation`.

        Args:
            table: float64[G, D] over all directions.
            split: Which split to look at.
            examples: Task -> positions; None is the whole split.
            gradient: Also give d(value)/d(vector) of the problem's search space.
            metrics: Also measure the report's metrics.
        """
        measured = self.attempt(
            lambda: self.measure(table, split, examples=examples, gradient=gradient, metrics=metrics)
        )
        return measured if isinstance(measured, Evaluation) else self.judge(measured, split)

    def attempt(self, work: Callable[[], Measurement]) -> Measurement | Evaluation:
        """What ``work`` measures, or what went wrong as a failed `Evaluation`; a user's mistake still raises."""
        try:
            return work()
        except OptmergeError:
            raise
        except Exception as problem:  # out of memory, a kernel that fails, a model that raises: the search goes on
            self.engine.forget()
            log.debug("an evaluation failed", exc_info=True)
            reason = " ".join(str(problem).split()) or "no message"
            return Evaluation(math.nan, error=f"{type(problem).__name__}: {reason[:300]}")

    def judge(self, measured: Measurement, split: SplitName) -> Evaluation:
        """The objective's value of a measurement."""
        value, per_task = self.problem.objective.combine(split, measured.means)
        pulled = None
        if measured.table_gradient is not None:
            pulled = self.problem.space.pull_back(measured.table_gradient[:, self.problem.columns])
        error = None
        if not math.isfinite(value):
            bad = [task for task, part in per_task.items() if not math.isfinite(part)]
            error = f"the objective is {value} (task {', '.join(bad)})"
        elif pulled is not None and not np.isfinite(pulled).all():
            error = f"{int((~np.isfinite(pulled)).sum())} of {len(pulled)} entries of the gradient are not finite"
        return Evaluation(
            value if error is None else math.nan,
            per_task,
            measured.means,
            gradient=pulled,
            per_example=measured.per_example or None,
            error=error,
            seconds=measured.seconds,
        )

    def measure(
        self,
        table: Table,
        split: SplitName,
        *,
        examples: Mapping[str, Sequence[int]] | None = None,
        objective: bool = True,
        metrics: bool = False,
        gradient: bool = False,
        per_example: bool = False,
    ) -> Measurement:
        """Measure one table; see `evaluate` for the arguments. Exceptions pass through."""
        problem = self.problem
        assert examples is None or not per_example, "per-example values are of whole splits"
        begun = time.perf_counter()
        self.engine.apply(table)
        merged = time.perf_counter()
        scope = self.engine.gradient(problem.space.searched_groups, problem.columns) if gradient else nullcontext(None)
        tally = _Tally(problem.device, per_example=per_example)
        with scope as gatherer, torch.set_grad_enabled(gradient):
            for task, data in problem.calibration.tasks.items():
                source = data.splits[split]
                terms = self._terms(data.kind, source.has_labels, objective=objective, metrics=metrics)
                positions = None if examples is None else examples[task]
                count = source.size if positions is None else len(positions)
                model = problem.resident.model_for(data.expert)
                for batch in source.batches(batch_tokens=problem.config.batch_tokens, positions=positions):
                    values = self._judge_batch(model, batch, terms, task, split, gatherer, count)
                    tally.add(task, values, batch.positions, count)
        table_gradient = gatherer.table() if gatherer is not None else None
        means = tally.means()
        arrays = tally.arrays()
        done = time.perf_counter()
        return Measurement(means, arrays, table_gradient, {"merge": merged - begun, "evaluate": done - merged})

    def _judge_batch(
        self,
        model: torch.nn.Module,
        batch: Batch,
        terms: dict[str, ModelTerm],
        task: str,
        split: SplitName,
        gatherer: GradientGatherer | None,
        count: int,
    ) -> dict[str, torch.Tensor]:
        problem = self.problem
        teacher = self.teachers.batch(task, split, batch)
        moved = batch.to(problem.device)
        logits = model(**moved.inputs, **problem.forward_options).logits
        values = {name: term.per_example(logits, moved, teacher) for name, term in terms.items()}
        if gatherer is not None:
            wanted = {term.name: values[term.name] for term in problem.objective.terms}
            problem.objective.loss(split, task, wanted, count).backward()  # type: ignore[no-untyped-call]
        return {name: value.detach() for name, value in values.items()}

    def _terms(self, kind: Kind, labelled: bool, *, objective: bool, metrics: bool) -> dict[str, ModelTerm]:
        """The terms to look at, by name; the objective's own stand before a metric of the same name."""
        chosen: dict[str, ModelTerm] = {}
        if objective:
            chosen |= {term.name: term for term in self.problem.objective.terms}
        if metrics:
            for term in report_metrics(kind, labelled):
                chosen.setdefault(term.name, term)
        return chosen


class _Tally:
    """Sums (and, if wanted, single values) per task and term, on the device until they are asked for."""

    def __init__(self, device: torch.device, *, per_example: bool) -> None:
        self._device = device
        self._dtype = torch.float64 if device.type != "mps" else torch.float32
        self._per_example = per_example
        self._sums: dict[tuple[str, str], torch.Tensor] = {}
        self._kept: dict[tuple[str, str], torch.Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, task: str, values: Mapping[str, torch.Tensor], positions: torch.Tensor, count: int) -> None:
        """Add a batch's values [B], whose examples stand at ``positions`` of ``count``."""
        self._counts[task] = count
        for name, value in values.items():
            key = (task, name)
            if key not in self._sums:
                self._sums[key] = torch.zeros((), dtype=self._dtype, device=self._device)
                if self._per_example:
                    self._kept[key] = torch.empty(count, dtype=self._dtype, device=self._device)
            self._sums[key].add_(value.sum(dtype=self._dtype))
            if self._per_example:
                self._kept[key][positions.to(self._device, non_blocking=True)] = value.to(self._dtype)

    def means(self) -> dict[str, dict[str, float]]:
        """Task -> term -> mean; the one synchronisation of an evaluation."""
        means: dict[str, dict[str, float]] = {}
        totals = torch.stack(list(self._sums.values())).tolist()
        for (task, name), total in zip(self._sums, totals, strict=True):
            means.setdefault(task, {})[name] = total / self._counts[task]
        return means

    def arrays(self) -> dict[str, dict[str, Vector]]:
        """Task -> term -> float64[n]."""
        arrays: dict[str, dict[str, Vector]] = {}
        for (task, name), tensor in self._kept.items():
            arrays.setdefault(task, {})[name] = tensor.to("cpu", torch.float64).numpy()
        return arrays
