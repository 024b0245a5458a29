"""The evaluator: puts coefficients into the resident model and judges it on one split.

    evaluator = Evaluator(problem, teachers)
    measurement = evaluator.measure(table, "select", objective=True)
    evaluation = evaluator.evaluate(vector, "fit", gradient=True)

One synchronisation with the device per evaluation: all sums stay on it until the end. (Two for a gradient that needs
the losses first.) When memory runs out, the evaluation fails and later ones take smaller steps.
"""

from __future__ import annotations

import logging
import math
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from optmerge.errors import OptmergeError
from optmerge.merging.coefficients import Table
from optmerge.merging.spread_engine import AnyEngine
from optmerge.models.device import out_of_memory, release_memory
from optmerge.objective import report_metrics
from optmerge.objective.base import scored_logits
from optmerge.objective.signals import Signals, row_sums, share_at_bound
from optmerge.records import OBJECTIVE, Candidate, Evaluation, SplitName, Vector
from optmerge.runner.curvature import measure_curvature
from optmerge.runner.look import Examples, Look
from optmerge.runner.peak_memory import PeakMemory
from optmerge.runner.tally import Tally
from optmerge.runner.teachers import Teachers
from optmerge.runner.terms import whole_terms

if TYPE_CHECKING:
    from optmerge.calibration.data import Batch, Kind
    from optmerge.objective.base import ModelTerm
    from optmerge.objective.geometry import Geometry
    from optmerge.runner.problem import Problem

log = logging.getLogger(__name__)

Slopes = Mapping[str, Mapping[str, torch.Tensor]]
"""Task -> summary term -> the derivative [m] of its value by its means."""


@dataclass(frozen=True)
class Measurement:
    """Raw means of terms and metrics, before any normalisation.

    Attributes:
        means: Task -> term or metric name -> mean over examples, in the term's unit.
        per_example: Task -> name -> float64[n], when asked for.
        table_gradient: float64[G, D], d(objective)/d(coefficients), when asked for.
        parts: Term of the whole model or of the coefficients -> its value, in the term's unit.
        seconds: ``merge`` and ``evaluate``.
        signals: See `optmerge.objective.signals`.
        curvature: float64[d, d], the Gauss-Newton matrix by the variables, when asked for.
    """

    means: Mapping[str, Mapping[str, float]]
    per_example: Mapping[str, Mapping[str, Vector]] = field(default_factory=dict)
    table_gradient: Table | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    signals: Mapping[str, float] = field(default_factory=dict)
    curvature: Vector | None = None


class Evaluator:
    """Judges vectors of a problem's search space, and tables of coefficients over all directions.

    Attributes:
        batch_tokens: The most padded tokens in a forward pass. It is halved when memory runs out: values are means over
            examples, so only their last bits depend on it.
        geometry: Of the searched coefficients, once the search knows where it starts; terms of the coefficients need it
            on the fit split.
        peak: By how much merging, evaluating and what lies between raised the memory's peak.
    """

    def __init__(self, problem: Problem, teachers: Teachers) -> None:
        self.problem = problem
        self.teachers = teachers
        self.engine: AnyEngine = problem.engine
        self.batch_tokens = problem.config.batch_tokens
        self.geometry: Geometry | None = None
        self.peak = PeakMemory(*problem.spread.devices)
        self._kind: Kind = next(iter(problem.calibration.tasks.values())).kind

    def fit(self, candidate: Candidate) -> Evaluation:
        """The objective of a candidate on its part of the fit split, with what it needs."""
        return self.evaluate(
            candidate.vector,
            "fit",
            examples=candidate.examples,
            gradient="gradient" in candidate.needs,
            jacobian="jacobian" in candidate.needs,
            per_example="per_example" in candidate.needs,
        )

    def select(self, vector: Vector) -> Evaluation:
        """The objective of a vector on the whole select split, with the metrics that need no label."""
        return self.evaluate(vector, "select", metrics=True)

    def evaluate(
        self,
        vector: Vector,
        split: SplitName,
        *,
        examples: Examples = None,
        gradient: bool = False,
        jacobian: bool = False,
        metrics: bool = False,
        per_example: bool = False,
    ) -> Evaluation:
        """Judge one vector; any failure but a user's mistake or a bug in the caller becomes a failed `Evaluation`.

        Args:
            vector: float64[d], of the search space.
            split: Which split to look at.
            examples: Task -> positions; None is the whole split.
            gradient: Also give d(value)/d(vector).
            jacobian: Also give the Gauss-Newton matrix, for d + 1 more forward passes (`optmerge.runner.curvature`).
            metrics: Also measure the report's metrics.
            per_example: Also give every example's share of its task's part, in the order of ``examples``.
        """

        def work() -> Measurement:
            measured = self.measure(
                self.problem.expand(vector),
                split,
                examples=examples,
                gradient=gradient,
                metrics=metrics,
                per_example=per_example,
            )
            shares = self.problem.objective.on(split).by_example(split, measured.per_example)
            measured = replace(measured, per_example={task: {OBJECTIVE: costs} for task, costs in shares.items()})
            if jacobian:
                matrix = measure_curvature(self, vector, split, measured.means, examples=examples)
                measured = replace(measured, curvature=matrix)
            return self.completed(measured, vector, split)

        measured = self.attempt(work, split, examples=examples)
        return measured if isinstance(measured, Evaluation) else self.judge(measured, split, vector)

    def completed(self, measured: Measurement, vector: Vector, split: SplitName) -> Measurement:
        """A measurement at a vector with what the vector alone says: its signals, and on fit what terms of it add."""
        space = self.problem.space
        at_bound = share_at_bound(vector, space.lower, space.upper, choices=space.integer)
        measured = replace(measured, signals={**measured.signals, "at-bound": at_bound})
        return self._regularised(measured, vector) if split == "fit" else measured

    def attempt(
        self, work: Callable[[], Measurement], split: SplitName, *, examples: Examples = None
    ) -> Measurement | Evaluation:
        """What ``work`` measures, or what went wrong as a failed `Evaluation`; a user's mistake still raises.

        Where memory ran out, everything that ``work`` held on the device is let go, and the micro-batch is halved for
        all later evaluations if that makes the largest forward pass of these examples smaller.

        Args:
            work: Measures something.
            split: The split that it looks at.
            examples: Task -> positions that it looks at; None is the whole split.
        """
        try:
            return work()
        except OptmergeError:
            raise
        except Exception as problem:  # out of memory, a kernel that fails, a model that raises: the search goes on
            starved = out_of_memory(problem)
            if not starved:
                log.debug("an evaluation failed", exc_info=True)
            reason = " ".join(str(problem).split()) or "no message"
            error = f"{type(problem).__name__}: {reason[:300]}"
            traceback.clear_frames(problem.__traceback__)  # their variables are activations, and what made them
        self.engine.forget()
        for parameter in self.problem.resident.parameters.values():
            parameter.grad = None
        smaller = self._halve(split, examples) if starved else None
        self.peak.mark("evaluate")
        return Evaluation(math.nan, error=error, memory=self.peak.take(), batch_tokens=smaller, starved=starved)

    def _halve(self, split: SplitName, examples: Examples) -> int | None:
        """Free memory and halve the micro-batch; None where the largest forward pass is one example already."""
        release_memory(self.problem.device)
        largest = self._largest_pass(split, examples, self.batch_tokens)
        smaller = min(self.batch_tokens, largest) // 2
        if smaller < 1 or self._largest_pass(split, examples, smaller) >= largest:
            return None
        log.warning(
            "memory ran out in a forward pass of up to %d tokens; from here on a pass has at most %d", largest, smaller
        )
        self.batch_tokens = smaller
        return smaller

    def _largest_pass(self, split: SplitName, examples: Examples, batch_tokens: int) -> int:
        """Padded tokens of the largest batch."""
        return max(
            batch.tokens
            for task in self.problem.calibration.tasks
            for batch in self.batches(task, split, examples, batch_tokens)
        )

    def judge(self, measured: Measurement, split: SplitName, vector: Vector | None = None) -> Evaluation:
        """The objective's value of a measurement; with ``vector``, which it was made at, also the gradient by it."""
        value, per_task = self.problem.objective.on(split).combine(split, measured.means, measured.parts)
        pulled = None
        if measured.table_gradient is not None:
            assert vector is not None, "a gradient is taken at a vector"
            pulled = self.problem.space.pull_back(measured.table_gradient[:, self.problem.columns], vector)
        error = None
        if not math.isfinite(value):
            bad = [f"task {task}" for task, part in per_task.items() if not math.isfinite(part)]
            bad += [name for name, part in measured.parts.items() if not math.isfinite(part)]
            error = f"the objective is {value} ({', '.join(bad)})"
        elif pulled is not None and not np.isfinite(pulled).all():
            error = f"{int((~np.isfinite(pulled)).sum())} of {len(pulled)} entries of the gradient are not finite"
        elif measured.curvature is not None and not np.isfinite(measured.curvature).all():
            error = "the Gauss-Newton matrix is not finite: a point near by has no value"
        return Evaluation(
            value if error is None else math.nan,
            per_task,
            measured.means,
            gradient=pulled,
            curvature=measured.curvature,
            per_example=measured.per_example or None,
            error=error,
            seconds=measured.seconds,
            memory=self.peak.take(),
            parts=measured.parts,
            signals=measured.signals,
        )

    def _regularised(self, measured: Measurement, vector: Vector) -> Measurement:
        """A measurement with what the terms of the coefficients add to value and gradient."""
        problem = self.problem
        if not problem.objective.regularisers:
            return measured
        assert self.geometry is not None, "terms of the coefficients need the geometry of the search"
        coefficients = problem.space.decode(vector)
        gradient = measured.table_gradient
        parts, slope = problem.objective.regularise(coefficients, self.geometry, gradient=gradient is not None)
        if gradient is not None and slope is not None:
            gradient = gradient.copy()
            gradient[:, problem.columns] += slope
        return replace(measured, table_gradient=gradient, parts={**measured.parts, **parts})

    def measure(
        self,
        table: Table,
        split: SplitName,
        *,
        examples: Examples = None,
        objective: bool = True,
        metrics: bool = False,
        gradient: bool = False,
        per_example: bool = False,
    ) -> Measurement:
        """Measure one table; see `evaluate` for the arguments. Exceptions pass through.

        A gradient costs a forward and a backward pass. Where the tasks' weights depend on their parts, or a term is a
        function of means, it costs a forward pass without gradients first, which gives the values and the slopes, and
        then both passes for the tasks that count.
        """
        self.peak.mark("driver")
        begun = time.perf_counter()
        self.engine.apply(table)
        self.peak.mark("merge")
        merged = time.perf_counter()
        look = Look(split, examples, objective, metrics)
        tally = Tally(self.problem.device, self.terms(look), per_example=per_example)
        composed = self.problem.objective.on(split)
        table_gradient = None
        if gradient and not composed.two_passes:
            table_gradient = self.gradient(look, tally, composed.shares)
        else:
            self.look_at(look, tally)
        means, signals = tally.read()
        if gradient and composed.two_passes and math.isfinite(composed.combine(split, means)[0]):
            look = Look(split, examples, objective=True, metrics=False)
            table_gradient = self.gradient(look, None, composed.weigh(split, means), tally.slopes())
        arrays = tally.arrays()
        # A report shows the terms of the whole model that steered: the driver's and those of select.
        whole = composed.whole if objective else whole_terms(self.problem.objective) if split == "report" else []
        parts = {term.name: term.measure(self.problem.resident.model_for("base"), split) for term in whole}
        self.peak.mark("evaluate")
        done = time.perf_counter()
        seconds = {"merge": merged - begun, "evaluate": done - merged}
        return Measurement(means, arrays, table_gradient, parts, seconds, {**signals, **row_sums(table)})

    def gradient(
        self, look: Look, tally: Tally | None, weights: Mapping[str, float], slopes: Slopes | None = None
    ) -> Table:
        """The gradient by the coefficients, float64[G, D], of the tasks' parts in a weighted sum."""
        problem = self.problem
        gathering = self.engine.gradient(problem.space.searched_groups, problem.columns)
        with gathering as gatherer, problem.checkpointing or nullcontext():
            self.look_at(look, tally, weights, slopes or {})
        return gatherer.table()

    def look_at(
        self,
        look: Look,
        tally: Tally | None,
        weights: Mapping[str, float] | None = None,
        slopes: Slopes | None = None,
    ) -> None:
        """One pass over the examples; with ``weights``, every batch's share of the objective is back-propagated.

        A task of weight 0 is seen for the tally's sake only.

        Args:
            look: At what.
            tally: Where values go; None where they are known.
            weights: Task -> derivative of the objective by the task's part.
            slopes: Of the summary terms by their means, where there are such terms.
        """
        composed = self.problem.objective.on(look.split)
        for task, data in self.problem.calibration.tasks.items():
            weight = 0.0 if weights is None else weights[task]
            if weight == 0.0 and tally is None:
                continue
            source = data.splits[look.split]
            terms = self.terms(look, labelled=source.has_labels)
            count, ranks = look.count(task, source), look.ranks(task, source)
            positions = look.positions(task, source)
            with torch.set_grad_enabled(weight != 0.0):
                batches = source.batches(batch_tokens=self.batch_tokens, positions=positions) if terms else []
                for batch in batches:
                    values = self._judge_batch(batch, terms, task, look.split, None if tally is None else tally.watch)
                    if weight != 0.0:
                        steep = (slopes or {}).get(task, {})
                        wanted = {
                            name: values[name] @ steep[name].to(values[name].dtype) if name in steep else values[name]
                            for name in (term.name for term in composed.terms)
                        }
                        loss = composed.loss(look.split, task, wanted, count, weight=weight)
                        loss.backward()  # type: ignore[no-untyped-call]
                    if tally is not None:
                        kept = {name: value.detach() for name, value in values.items()}
                        places = batch.positions if ranks is None else ranks[batch.positions]
                        tally.add(task, kept, places, count)

    def batches(self, task: str, split: SplitName, examples: Examples, batch_tokens: int) -> list[Batch]:
        """A task's examples, or some of them, in batches of at most so many padded tokens; on the CPU."""
        source = self.problem.calibration.tasks[task].splits[split]
        return source.batches(batch_tokens=batch_tokens, positions=None if examples is None else examples[task])

    def _judge_batch(
        self, batch: Batch, terms: dict[str, ModelTerm], task: str, split: SplitName, watch: Signals | None
    ) -> dict[str, torch.Tensor]:
        problem = self.problem
        teacher = self.teachers.batch(task, split, batch)
        moved = batch.to(problem.device)
        layers = sorted({layer for term in terms.values() for layer in term.layers(problem.family.num_layers)})
        outputs = problem.outputs(task, moved, layers)
        if watch is not None:
            watch.add(task, scored_logits(outputs.logits, moved), teacher)
        return {name: term.per_example(outputs, moved, teacher) for name, term in terms.items()}

    def terms(self, look: Look, *, labelled: bool = True) -> dict[str, ModelTerm]:
        """The terms to look at, by name; the objective's own stand before a metric of the same name."""
        chosen: dict[str, ModelTerm] = {}
        if look.objective:
            chosen |= {term.name: term for term in self.problem.objective.on(look.split).terms}
        if look.metrics:
            for term in report_metrics(self._kind, labelled):
                chosen.setdefault(term.name, term)
        return chosen
