"""The executor of a search's settings: this process, processes of this machine, or a Ray cluster.

    with closing(make_executor(evaluator, judge, config)) as executor:
        executor.use(evaluator, start)               # at the beginning of every stage
        outcome = run_loop(driver, executor, ...)

A driver that follows gradients asks for one candidate at a time. With several workers each of its evaluations is made
in shares, one for each worker (`optmerge.runner.shares`), whoever is there to make them.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch

from optmerge.config.drivers import GRADIENT_DRIVERS
from optmerge.records import Vector
from optmerge.runner.crew import Crew
from optmerge.runner.executor import Executor, Finished, InProcess, Job
from optmerge.runner.local_workers import LocalWorkers
from optmerge.runner.ray_workers import RayWorkers
from optmerge.runner.search_files import SearchFiles
from optmerge.runner.shares import (
    ShareEvaluation,
    ShareJob,
    added_up,
    can_share,
    second_jobs,
    share_jobs,
    tallied,
)
from optmerge.runner.spreading import devices_of
from optmerge.runner.tally import Tally
from optmerge.runner.worker import Context, WorkerSpec

if TYPE_CHECKING:
    from optmerge.config.schema import SearchConfig
    from optmerge.runner.evaluator import Evaluator
    from optmerge.runner.executor import Judge
    from optmerge.runner.problem import Problem


class SearchExecutor(Executor, Protocol):
    """An executor that is told where the search stands."""

    def use(self, evaluator: Evaluator, start: Vector) -> None:
        """Jobs from now on are of this evaluator's stage, whose search begins at ``start``."""


def make_executor(evaluator: Evaluator, judge: Judge, config: SearchConfig) -> SearchExecutor:
    """The executor that the search file asks for; workers are started by the first job.

    Args:
        evaluator: Of this process.
        judge: Evaluates in this process, where that is what is asked for.
        config: The whole search, with absolute references.

    Raises:
        ConfigError: Files cannot be fetched as they are named.
        MissingExtraError: Ray is asked for and not installed.
        RunError: There is no such cluster, or it has no room; or a file cannot be read, or not be served.
    """
    settings = config.executor
    if settings.in_process:
        return Here(judge)
    transport = make_transport(evaluator.problem, config)
    files = None
    if settings.files == "fetch":
        try:
            teachers = Context.of(evaluator, None).teachers
            files = SearchFiles(config, evaluator.problem, teachers, host=transport.host)
        except BaseException:
            transport.close()
            raise
        transport.equip(files.spec)
    crew = Crew(transport, workers=settings.workers, timeout=settings.timeout, retries=settings.retries)
    return Workers(crew, files)


def check_workers(problem: Problem, config: SearchConfig) -> None:
    """Find out whether there will be workers and can be files for them, before there are teachers and baselines.

    Raises:
        ConfigError, MissingExtraError, RunError: As `make_executor`.
    """
    settings = config.executor
    if settings.in_process:
        return
    with closing(make_transport(problem, config)) as transport:
        if settings.files == "fetch":
            SearchFiles(config, problem, {}, host=transport.host).close()


def make_transport(problem: Problem, config: SearchConfig) -> LocalWorkers | RayWorkers:
    """The way to the workers that the search file asks for.

    Raises:
        MissingExtraError: Ray is asked for and not installed.
        RunError: There is no such cluster, or it has no room.
    """
    settings = config.executor
    threads = settings.threads or max(1, torch.get_num_threads() // settings.workers)
    if settings.name == "ray":
        accelerated = problem.device.type == "cuda"
        devices = [str(problem.device)]
        if accelerated:  # Ray shows a worker those that are its own, from number 0 on
            devices = [f"cuda:{number}" for number in range(len(problem.spread.devices))]
        return RayWorkers(
            WorkerSpec.of(problem, config, devices=devices, threads=threads),
            workers=settings.workers,
            address=settings.address,
            gpus=settings.gpus_per_worker if accelerated else 0.0,
            cpus=threads,
        )
    each = devices_of(problem.spread, config.device, settings.workers)
    return LocalWorkers([WorkerSpec.of(problem, config, devices=devices, threads=threads) for devices in each])


class Here(InProcess):
    """This process."""

    def use(self, evaluator: Evaluator, start: Vector) -> None:
        """The judge is told by the session that owns it."""


@dataclass(eq=False)
class _Shared:
    """A job that is made in shares."""

    handle: int
    job: Job
    shares: list[ShareJob]
    waiting: dict[int, int] = field(default_factory=dict)  # handle -> which share
    found: dict[int, ShareEvaluation] = field(default_factory=dict)  # of this round
    earlier: list[ShareEvaluation] = field(default_factory=list)
    tally: Tally | None = None
    seconds: float = 0.0  # of all workers together


class Workers:
    """An executor over a crew: single candidates are made in shares, several side by side.

    Args:
        crew: Who evaluates.
        files: What serves the crew's machines the search's files; None where they have them.
    """

    def __init__(self, crew: Crew, files: SearchFiles | None = None) -> None:
        self.workers = crew.workers
        self._crew = crew
        self._files = files
        self._handles = 0
        self._whole: dict[int, int] = {}  # the crew's handle -> ours
        self._shared: dict[int, _Shared] = {}  # the crew's handle of every share -> its job
        self._evaluator: Evaluator | None = None
        self._start: Vector | None = None
        self._sharing = False

    def use(self, evaluator: Evaluator, start: Vector) -> None:
        """Jobs from now on are of this evaluator's stage, whose search begins at ``start``."""
        self._evaluator, self._start = evaluator, start
        self._sharing = self.workers > 1 and evaluator.problem.config.driver.name in GRADIENT_DRIVERS
        self._tell()

    def submit(self, job: Job) -> int:
        """Take a job and give its handle; never blocks."""
        assert self._evaluator is not None, "the executor is told the evaluator first"
        handle = self._handles
        self._handles += 1
        if self._sharing and can_share(self._evaluator, job):
            self._spread(_Shared(handle, job, share_jobs(self._evaluator, job, self.workers)))
        else:
            self._whole[self._crew.submit(job)] = handle
        return handle

    def next_finished(self, timeout: float | None) -> Finished | None:
        """A job that ended, in the order in which they end."""
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if until is None else max(0.0, until - time.monotonic())
            found = self._crew.next_finished(left)
            if found is None:
                return None
            if found.evaluation is not None and found.evaluation.batch_tokens is not None:
                self._shrink(found.evaluation.batch_tokens)
            if found.handle in self._whole:
                return _renamed(found, self._whole.pop(found.handle))
            finished = self._gather(self._shared.pop(found.handle), found)
            if finished is not None:
                return finished

    def cancel(self, handle: int) -> None:
        """A job that is not wanted any more."""
        for inner, outer in list(self._whole.items()):
            if outer == handle:
                del self._whole[inner]
                self._crew.cancel(inner)
        for shared in {entry for entry in self._shared.values() if entry.handle == handle}:
            self._drop(shared)

    def close(self) -> None:
        """End all workers."""
        try:
            self._crew.close()
        finally:
            if self._files is not None:
                self._files.close()

    def _tell(self) -> None:
        assert self._evaluator is not None
        context = Context.of(self._evaluator, self._start)
        self._crew.use(context if self._files is None else self._files.context(context))

    def _shrink(self, batch_tokens: int) -> None:
        """Memory ran out somewhere: all take smaller steps from here on."""
        assert self._evaluator is not None
        if batch_tokens < self._evaluator.batch_tokens:
            self._evaluator.batch_tokens = batch_tokens
            self._tell()

    def _spread(self, shared: _Shared) -> None:
        for number, job in enumerate(shared.shares):
            inner = self._crew.submit(job)
            shared.waiting[inner] = number
            self._shared[inner] = shared

    def _drop(self, shared: _Shared) -> None:
        for inner in shared.waiting:
            self._shared.pop(inner, None)
            self._crew.cancel(inner)

    def _gather(self, shared: _Shared, found: Finished) -> Finished | None:
        """Note a share; the job's end, if that was the last one or it failed."""
        assert self._evaluator is not None
        number = shared.waiting.pop(found.handle)
        shared.seconds += found.seconds
        if not isinstance(found.evaluation, ShareEvaluation):  # one share that fails is a job that fails
            self._drop(shared)
            return _renamed(found, shared.handle)
        shared.found[number] = found.evaluation
        if shared.waiting:
            return None
        round_ = [shared.found[number] for number in range(len(shared.shares))]
        if shared.tally is None:
            shared.tally = tallied(self._evaluator, shared.shares, round_)
            again = second_jobs(self._evaluator, shared.shares, shared.tally)
            if again:
                shared.shares, shared.earlier, shared.found = again, round_, {}
                self._spread(shared)
                return None
        evaluation = added_up(self._evaluator, shared.job, shared.tally, [*shared.earlier, *round_])
        return Finished(shared.handle, evaluation, None, shared.seconds, found.worker, found.attempts)


def _renamed(found: Finished, handle: int) -> Finished:
    return Finished(handle, found.evaluation, found.error, found.seconds, found.worker, found.attempts)
