"""A worker: a process with a model of its own, which evaluates what it is sent.

    worker = Worker(spec)                        # opens models and data, as the driver's process did
    reply = worker.answer(order)                 # an evaluation, and the seconds that it took

What a worker is made from (`WorkerSpec`) is a search and references to files; what a search finds out before its
candidates (`Context`) is a few numbers, and the names of the files of teacher outputs. No weights travel: base and
experts are mapped from the same files, teacher outputs and directions read from the cache where the driver's process
has put them.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from optmerge.config.schema import SearchConfig
from optmerge.errors import OptmergeError
from optmerge.merging.engine import Form
from optmerge.models.cache import cache_dir
from optmerge.objective.objective import Normalisers
from optmerge.records import Evaluation, Vector
from optmerge.runner.crew import Order, Reply
from optmerge.runner.evaluator import Evaluator
from optmerge.runner.geometry import make_geometry
from optmerge.runner.problem import Problem, open_problem
from optmerge.runner.shares import ShareJob, measure_share
from optmerge.runner.stages import open_stage
from optmerge.runner.teachers import Files, Teachers
from optmerge.space.space import SearchSpace

if TYPE_CHECKING:
    from optmerge.runner.executor import Job

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker is made from; can be pickled.

    Attributes:
        config: The whole search, with absolute references.
        devices: Where its model is to live: cpu, cuda:1, mps; several that it is spread over.
        layout: Which of several has which modules.
        threads: Of the CPU.
        form: How gradients are gathered, so that every worker does it alike.
        kept: What stays on an accelerator.
        cache: The cache folder of the process that asks.
    """

    config: SearchConfig
    devices: tuple[str, ...]
    layout: Mapping[str, int]
    threads: int
    form: Form
    kept: tuple[str, ...]
    cache: str

    @classmethod
    def of(cls, problem: Problem, config: SearchConfig, *, devices: Sequence[str], threads: int) -> WorkerSpec:
        """That of a worker for an opened problem of a search."""
        layout = dict(problem.spread.layout)
        return cls(config, tuple(devices), layout, threads, problem.engine.form, problem.kept, str(cache_dir()))


@dataclass(frozen=True, eq=False)
class Context:
    """What all evaluations of a stage share; can be pickled.

    Attributes:
        stage: Of the schedule.
        space: The search space, where it is not the one that the stage opens with; None where it is.
        start: float64[d], where the search began, in the stage's space; None before it has.
        normalisers: What terms are divided by.
        teachers: Files of the teachers' outputs on fit and select.
        batch_tokens: The most padded tokens in a forward pass.
    """

    stage: int
    space: SearchSpace | None
    start: Vector | None
    normalisers: Normalisers
    teachers: Files
    batch_tokens: int

    @classmethod
    def of(cls, evaluator: Evaluator, start: Vector | None) -> Context:
        """That of an evaluator as it is now."""
        problem = evaluator.problem
        stage = len(problem.earlier)
        return cls(
            stage,
            None if problem.space is problem.stages[stage].space else problem.space,
            start,
            problem.objective.normalisers(),
            {key: path for key, path in evaluator.teachers.files.items() if key[1] != "report"},
            evaluator.batch_tokens,
        )


class Worker:
    """Evaluates; its model is opened once."""

    def __init__(self, spec: WorkerSpec) -> None:
        """Open models and data.

        Raises:
            UserError: As `open_problem`.
        """
        torch.set_num_threads(spec.threads)
        if spec.devices[0].startswith("cuda"):
            torch.cuda.set_device(spec.devices[0])
        config = spec.config.model_copy(update={"device": spec.devices[0]})
        devices = [torch.device(name) for name in spec.devices]
        self._problem = open_problem(config, form=spec.form, kept=spec.kept, devices=devices, layout=spec.layout)
        self._evaluator: Evaluator | None = None
        self._files: Files | None = None

    def answer(self, order: Order) -> Reply:
        """Do what is asked."""
        begun = time.perf_counter()
        found: Evaluation | OptmergeError
        try:
            if order.context is not None:
                self._enter(order.context)
            found = self._evaluate(order.job)
        except OptmergeError as mistake:
            found = mistake
        return Reply(found, time.perf_counter() - begun)

    def _evaluate(self, job: Job) -> Evaluation:
        assert self._evaluator is not None, "the first order has a context"
        return measure_share(self._evaluator, job) if isinstance(job, ShareJob) else job.run(self._evaluator)

    def _enter(self, context: Context) -> None:
        """Stand where the search stands."""
        for number in range(len(self._problem.earlier) + 1, context.stage + 1):
            self._problem = open_stage(self._problem, number)
        problem = self._problem
        if context.space is not None:
            problem.space = context.space
        problem.objective.restore(context.normalisers)
        if self._evaluator is None or self._evaluator.problem is not problem or self._files != context.teachers:
            teachers = Teachers.load(context.teachers, device=problem.device)
            self._evaluator, self._files = Evaluator(problem, teachers), context.teachers
        self._evaluator.batch_tokens = context.batch_tokens
        if context.start is not None:
            self._evaluator.geometry = make_geometry(problem, context.start)


def set_cache(spec: WorkerSpec) -> None:
    """Make the driver's cache this process's own; for processes that are nothing but a worker."""
    os.environ["OPTMERGE_CACHE"] = spec.cache
