"""A worker: a process with a model of its own, which evaluates what it is sent.

    worker = Worker(spec)                        # opens models and data, as the driver's process did
    reply = worker.answer(order)                 # an evaluation, and the seconds that it took

What a worker is made from (`WorkerSpec`) is a search and references to files; what a search finds out before its
candidates (`Context`) is a few numbers, and the names of the files of teacher outputs. No weights travel with them:
base and experts are mapped from the same files, teacher outputs and directions read from the cache where the driver's
process has put them, or all of it is fetched once by the worker's machine (`optmerge.runner.node_files`).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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
from optmerge.runner.fisher import Profile
from optmerge.runner.geometry import make_geometry
from optmerge.runner.node_files import Fetching, NodeFiles, SharedFiles, Tree
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
        deltas: Direction -> folder with the delta of a whole method.
        profiles: What was measured for the chunks of every stage.
        cache: The cache folder; None is the one that the worker's machine has anyway.
        fetching: Where the worker's machine fetches the files that `config` and `deltas` name; None where it has them.
    """

    config: SearchConfig
    devices: tuple[str, ...]
    layout: Mapping[str, int]
    threads: int
    form: Form
    kept: tuple[str, ...]
    deltas: Mapping[str, Path]
    profiles: tuple[Profile | None, ...]
    cache: str | None
    fetching: Fetching | None = None

    @classmethod
    def of(cls, problem: Problem, config: SearchConfig, *, devices: Sequence[str], threads: int) -> WorkerSpec:
        """That of a worker for an opened problem of a search."""
        return cls(
            config,
            tuple(devices),
            dict(problem.spread.layout),
            threads,
            form=problem.engine.form,
            kept=problem.kept,
            deltas=problem.deltas.folders,
            profiles=tuple(stage.profile for stage in problem.stages),
            cache=str(cache_dir()),
        )


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
        trees: What of these files the worker's machine fetches.
    """

    stage: int
    space: SearchSpace | None
    start: Vector | None
    normalisers: Normalisers
    teachers: Files
    batch_tokens: int
    trees: tuple[Tree, ...] = ()

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
            UserError: As `open_problem`; or a file is not on this machine and cannot be fetched.
            ConnectionError: The machine that files are fetched from cannot be reached.
        """
        torch.set_num_threads(spec.threads)
        if spec.devices[0].startswith("cuda"):
            torch.cuda.set_device(spec.devices[0])
        self._here = SharedFiles() if spec.fetching is None else NodeFiles(spec.fetching)
        config = self._here.located(spec.config).model_copy(update={"device": spec.devices[0]})
        made = {name: self._here.path(folder) for name, folder in spec.deltas.items()}
        devices = [torch.device(name) for name in spec.devices]
        self._problem = open_problem(
            config,
            form=spec.form,
            kept=spec.kept,
            devices=devices,
            layout=spec.layout,
            made=made,
            profiles=spec.profiles,
        )
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
            self._here.place(context.trees)
            files = {key: self._here.path(path) for key, path in context.teachers.items()}
            teachers = Teachers.load(files, device=problem.device)
            self._evaluator, self._files = Evaluator(problem, teachers), context.teachers
        self._evaluator.batch_tokens = context.batch_tokens
        if context.start is not None:
            self._evaluator.geometry = make_geometry(problem, context.start)


def set_cache(spec: WorkerSpec) -> None:
    """Make the cache that a worker is told of this process's own; for processes that are nothing but a worker."""
    if spec.cache is not None:
        os.environ["OPTMERGE_CACHE"] = spec.cache
