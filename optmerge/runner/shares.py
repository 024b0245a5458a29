"""One evaluation in shares: several workers look at some of its examples each, and what they find is added up.

    jobs = share_jobs(evaluator, job, shares=4)                     # one for each worker
    found = [measure_share(elsewhere, share) for share in jobs]     # by evaluators of the same problem
    tally = tallied(evaluator, jobs, found)
    again = second_jobs(evaluator, jobs, tally)                     # where the gradient needs all values first
    found += [measure_share(elsewhere, share) for share in again]
    evaluation = added_up(evaluator, job, tally, found)

For evaluations that a driver asks for one at a time. Values are means over all examples: a share's sums are divided by
their number only after they were added up, always in the order of the shares, whoever made them; so is the gradient,
whose weights count the examples of the whole evaluation too:

    dL/dcoefficients = sum over shares of the sum over their batches b of dL_b/dcoefficients,    L_b of `Objective.loss`

What does not depend on examples, such as terms of the coefficients, is added once, by the process that asks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from optmerge.merging.coefficients import Table
from optmerge.objective.signals import row_sums
from optmerge.records import Evaluation
from optmerge.runner.evaluator import Measurement
from optmerge.runner.executor import Job
from optmerge.runner.look import Look
from optmerge.runner.tally import Sums, Tally

if TYPE_CHECKING:
    from optmerge.runner.evaluator import Evaluator


@dataclass(frozen=True, slots=True)
class ShareJob(Job):
    """One share of a job.

    Attributes:
        share: Which of how many.
        weights: Task -> derivative of the objective by the task's part, for the gradient; None where values alone are
            wanted.
        slopes: Task -> summary term -> derivative [m] of its value by its means, on the CPU.
        values: Whether values are wanted.
    """

    share: tuple[int, int] = (0, 1)
    weights: Mapping[str, float] | None = None
    slopes: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)
    values: bool = True

    def look(self) -> Look:
        """What this share looks at."""
        return Look(
            self.split, self.candidate.examples, objective=True, metrics=self.split == "select", share=self.share
        )


@dataclass(frozen=True, slots=True)
class ShareEvaluation(Evaluation):
    """What a worker found for a share; the value itself is that of nothing.

    Attributes:
        sums: Of values, where they were wanted.
        table_gradient: float64[G, D], this share's part of d(objective)/d(coefficients), where weights were known.
    """

    sums: Sums | None = None
    table_gradient: Table | None = None


def share_jobs(evaluator: Evaluator, job: Job, shares: int) -> list[ShareJob]:
    """A job in so many shares."""
    composed = evaluator.problem.objective.on(job.split)
    known = "gradient" in job.candidate.needs and not composed.two_passes
    weights = composed.shares if known else None
    return [ShareJob(job.split, job.candidate, (number, shares), weights) for number in range(shares)]


def can_share(evaluator: Evaluator, job: Job) -> bool:
    """Whether what a job needs is a sum over examples."""
    whole = evaluator.problem.objective.on(job.split).whole
    return not whole and not {"jacobian", "per_example"} & job.candidate.needs


def measure_share(evaluator: Evaluator, job: ShareJob) -> Evaluation:
    """What a worker finds for a share; a failed `Evaluation` where it fails."""
    found: list[ShareEvaluation] = []

    def work() -> Measurement:
        begun = time.perf_counter()
        look, device = job.look(), evaluator.problem.device
        evaluator.engine.apply(evaluator.problem.expand(job.candidate.vector))
        merged = time.perf_counter()
        tally = Tally(device, evaluator.terms(look), per_example=False) if job.values else None
        gradient = None
        if job.weights is None:
            evaluator.look_at(look, tally)
        else:
            slopes = {task: {n: s.to(device) for n, s in terms.items()} for task, terms in job.slopes.items()}
            gradient = evaluator.gradient(look, tally, job.weights, slopes)
        sums = None if tally is None else tally.sums()
        seconds = {"merge": merged - begun, "evaluate": time.perf_counter() - merged}
        found.append(ShareEvaluation(math.nan, seconds=seconds, sums=sums, table_gradient=gradient))
        return Measurement({})

    failed = evaluator.attempt(work, job.split, examples=job.candidate.examples)
    return failed if isinstance(failed, Evaluation) else found[0]


def tallied(evaluator: Evaluator, jobs: Sequence[ShareJob], found: Sequence[ShareEvaluation]) -> Tally:
    """The values of all shares, added up in their order."""
    tally = Tally(torch.device("cpu"), evaluator.terms(jobs[0].look()), per_example=False)
    for evaluation in found:
        assert evaluation.sums is not None, "a share's first evaluation has values"
        tally.include(evaluation.sums)
    return tally


def second_jobs(evaluator: Evaluator, jobs: Sequence[ShareJob], tally: Tally) -> list[ShareJob]:
    """The shares once more for the gradient, where its weights depend on all values; none where there is no need."""
    composed = evaluator.problem.objective.on(jobs[0].split)
    if jobs[0].weights is not None or "gradient" not in jobs[0].candidate.needs:
        return []
    means, _ = tally.read()
    if not math.isfinite(composed.combine(jobs[0].split, means)[0]):
        return []
    weights, slopes = composed.weigh(jobs[0].split, means), tally.slopes()
    return [replace(job, weights=weights, slopes=slopes, values=False) for job in jobs]


def added_up(evaluator: Evaluator, job: Job, tally: Tally, found: Sequence[ShareEvaluation]) -> Evaluation:
    """The evaluation that the shares amount to.

    Args:
        evaluator: Of the process that asks.
        job: The whole job.
        tally: The values of all shares.
        found: What every share gave, one round after the other, each in the order of the shares.
    """
    vector = job.candidate.vector

    def work() -> Measurement:
        means, signals = tally.read()
        gradients = [evaluation.table_gradient for evaluation in found if evaluation.table_gradient is not None]
        gradient = sum(gradients[1:], gradients[0]) if gradients else None
        seconds = {part: max(evaluation.seconds[part] for evaluation in found) for part in ("merge", "evaluate")}
        signals = {**signals, **row_sums(evaluator.problem.expand(vector))}
        measured = Measurement(means, table_gradient=gradient, seconds=seconds, signals=signals)
        return evaluator.completed(measured, vector, job.split)

    measured = evaluator.attempt(work, job.split, examples=job.candidate.examples)
    return measured if isinstance(measured, Evaluation) else evaluator.judge(measured, job.split, vector)
