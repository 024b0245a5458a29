"""Which experts of a large pool matter: Frank-Wolfe from the base, and how its oracle chose.

    found = measure_pool(config, root=Path("."), rounds=20)
    [expert.name for expert in found.experts]           # the most relevant first

At every point of a short search in the hull of base and experts, the oracle compares <dL/dW, tau_k> over the experts k,
layer by layer: what going all the way to expert k in that layer promises, to first order. An expert that is chosen
often, and promises much when it is, matters; one that says what another has said already is chosen no more once the
other is in. (Chen et al. 2025, FW-Merging, with the inner product itself in place of a sum of cosines.) A point costs
one gradient, however many experts there are. It goes through the one loop, and its trajectory is kept like any run's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from optmerge.config.frank_wolfe import FrankWolfeConfig
from optmerge.config.load import dump_config
from optmerge.config.schema import BaselinesConfig, BudgetConfig, SearchConfig
from optmerge.config.spaces import SpaceConfig
from optmerge.drivers import make_driver
from optmerge.errors import ConfigError, RunError, RunFailed
from optmerge.records import Candidate, Evaluation, Progress, Record, SplitName, Trajectory, Vector
from optmerge.runner.evaluator import Evaluator
from optmerge.runner.executor import InProcess
from optmerge.runner.folder import RunFolder
from optmerge.runner.geometry import make_geometry
from optmerge.runner.journal import Journal
from optmerge.runner.knowledge import make_variables, variable_cells
from optmerge.runner.loop import run_loop
from optmerge.runner.manifest import check_manifest, make_manifest
from optmerge.runner.problem import Problem, open_problem
from optmerge.runner.references import absolute_references
from optmerge.runner.state import StateStore
from optmerge.runner.teachers import Teachers

Table = npt.NDArray[np.float64]

SUFFIX = "-pool"  # of the folder, behind the search's own


@dataclass(frozen=True, slots=True)
class Relevance:
    """How an expert fared with the oracle.

    Attributes:
        name: The expert.
        tasks: Tasks whose teacher it is.
        picked: Share of all choices (a layer at a point each) that fell on it.
        fall: What it promised when it was chosen: fall of the objective to first order, summed over layers, mean over
            points.
        at_base: What going all the way from the base promises, whether chosen or not; below 0 is a rise.
        weight: Its coefficient at the best point, mean over layers.
        by_group: Tensor group -> share of the points at which it was chosen there.
    """

    name: str
    tasks: tuple[str, ...]
    picked: float
    fall: float
    at_base: float
    weight: float
    by_group: dict[str, float]


@dataclass(frozen=True, slots=True)
class Pool:
    """What the oracle chose.

    Attributes:
        experts: The most relevant first.
        points: At how many points it chose.
        groups: The tensor groups, in each of which it chose.
        none_picked: Share of all choices that fell on the base.
        folder: Of the points' trajectory.
    """

    experts: tuple[Relevance, ...]
    points: int
    groups: tuple[str, ...]
    none_picked: float
    folder: Path


def pool_search(config: SearchConfig, rounds: int) -> SearchConfig:
    """The search that shows an oracle's choices: soft Frank-Wolfe, layer-wise, from the base."""
    return config.model_copy(
        update={
            "schedule": None,
            "driver": FrankWolfeConfig(corrections=1),
            "directions": ["experts"],
            "methods": None,
            "space": SpaceConfig(granularity="layer-wise", bounds=(0.0, 1.0), start=0.0),
            "baselines": BaselinesConfig(grid=[], methods=[]),
            "budget": BudgetConfig(evaluations=rounds, select_every=rounds),
            "output": config.output + SUFFIX,
        }
    )


def measure_pool(
    config: SearchConfig,
    *,
    root: Path,
    rounds: int,
    progress: Progress = lambda stage, done, total: None,
    stop: Callable[[], str | None] = lambda: None,
) -> Pool:
    """Measure a search's experts; what its folder holds already is not measured again.

    Args:
        config: The search whose experts, tasks and objective count.
        root: What relative paths are relative to.
        rounds: Points, each of which costs a gradient over the fit split.
        progress: Told of long work.
        stop: Asked before every evaluation.

    Raises:
        UserError: As of a search; or there is one expert, so that nothing is chosen.
        RunError: The folder holds something else.
    """
    if len(config.experts) < 2:
        raise ConfigError("There is one expert in the search, so that there is nothing to choose from.")
    settings = absolute_references(pool_search(config, rounds), root)
    path = root / settings.output
    folder = _claim(path, settings)
    with folder.locked():
        problem = open_problem(settings, progress=progress)
        manifest, stored = make_manifest(problem), folder.read_json("manifest.json")
        if stored is None:
            folder.write_json("manifest.json", manifest)
        else:
            check_manifest(stored, manifest, path)
        trajectory = Trajectory.open(path)
        try:
            return _Choices(problem, trajectory, progress).search(path, stop)
        finally:
            trajectory.close()


def _claim(path: Path, settings: SearchConfig) -> RunFolder:
    """The folder of an earlier measurement of the same, or a new one."""
    if not (path / "search.yaml").exists():
        return RunFolder.create(path, settings)
    folder = RunFolder.open(path)
    if dump_config(folder.config()) != dump_config(settings):
        raise RunError(
            f"{path} holds the choices of another search, or of another number of rounds. Delete it, or give this one "
            "a folder of its own with --set output=DIR (the folder is called so, with -pool behind it)."
        )
    return folder


class _Choices:
    """The measurement: the objective's normalisers, the search, and what its gradients say."""

    def __init__(self, problem: Problem, trajectory: Trajectory, progress: Progress) -> None:
        self.problem = problem
        self.evaluator = Evaluator(problem, Teachers.make(problem, progress))
        self.journal = Journal(trajectory)
        self.progress = progress

    def search(self, path: Path, stop: Callable[[], str | None]) -> Pool:
        problem, config = self.problem, self.problem.config
        for split in ("fit", "select"):
            self._base(split)
        start = problem.space.start
        self.evaluator.geometry = make_geometry(problem, start)
        driver = make_driver(
            config.driver,
            make_variables(problem, start, ()),
            seed=np.random.SeedSequence(config.seed),
            fit_sizes=problem.calibration.fit_sizes(),
            budget=config.budget.evaluations,
        )
        store = StateStore(path / "state")
        run_loop(driver, InProcess(self), self.journal, config.budget, store, stop=stop, collapse="warn")
        records = [record for record in self.journal.trajectory.records if record.phase == "search"]
        told = [record for record in records if record.gradient is not None]
        if not told:
            raise RunFailed(f"No point gave a gradient to choose by; the last reason was: {records[-1].error}.")
        return relevance(problem, told, path)

    def fit(self, candidate: Candidate) -> Evaluation:
        """A point's value and gradient on fit."""
        done = sum(record.phase == "search" for record in self.journal.trajectory.records)
        self.progress("points", done, self.problem.config.budget.evaluations)
        return self.evaluator.evaluate(candidate.vector, "fit", gradient=True)

    def select(self, vector: Vector) -> Evaluation:
        """The objective on select, which decides nothing here."""
        return self.evaluator.evaluate(vector, "select")

    def _base(self, split: SplitName) -> None:
        """The base model on a split, by which the objective is normalised."""
        problem = self.problem

        def make() -> Evaluation:
            table = np.zeros((problem.space.num_rows, len(problem.directions)))
            found = self.evaluator.attempt(lambda: self.evaluator.measure(table, split), split)
            if isinstance(found, Evaluation):
                return found
            problem.objective.on(split).set_normalisers(split, found.means)
            return self.evaluator.judge(found, split)

        record, _ = self.journal.next("baseline", driver="baseline", split=split, vector=None, make=make, name="base")
        if record.error:
            raise RunFailed(f"The base model itself cannot be judged on {split}: {record.error}.")
        problem.objective.on(split).set_normalisers(split, record.metrics)


def relevance(problem: Problem, records: Sequence[Record], path: Path) -> Pool:
    """What the oracle chose at every recorded point, and what it promised.

    Args:
        problem: Whose space the vectors are of: one variable per group and expert.
        records: Of points with gradients, at least one.
        path: The folder that they are in.
    """
    space, cells = problem.space, variable_cells(problem.space)
    assert cells is not None, "a layer-wise space without normalisation"
    falls = np.full((len(records), space.num_rows, len(space.directions)), -np.inf)  # promised; -inf: no such delta
    weights = np.zeros(falls.shape[1:])
    best = min(records, key=lambda record: np.inf if record.value is None else record.value)
    for place, record in enumerate(records):
        assert record.gradient is not None
        falls[place, cells[:, 0], cells[:, 1]] = -record.gradient  # the way to a vertex is one coefficient long
    assert best.vector is not None
    weights[cells[:, 0], cells[:, 1]] = best.vector
    choice = np.where(falls.max(axis=2) > 0, falls.argmax(axis=2), -1)  # [points, groups]; -1 is the base
    searched = np.isfinite(falls[0]).any(axis=1)
    names = tuple(group.name for group, some in zip(space.groups, searched.tolist(), strict=True) if some)
    experts = []
    for column, name in enumerate(space.directions):
        chosen = choice[:, searched] == column
        own = np.where(np.isfinite(falls[:, searched, column]), falls[:, searched, column], 0.0)
        experts.append(
            Relevance(
                name,
                tuple(task for task, data in problem.calibration.tasks.items() if data.expert == name),
                float(chosen.mean()),
                float((own * chosen).sum(axis=1).mean()),
                float(own[0].sum()),
                float(weights[searched, column].mean()),
                dict(zip(names, chosen.mean(axis=0).tolist(), strict=True)),
            )
        )
    experts.sort(key=lambda expert: (-expert.fall, -expert.at_base))
    return Pool(tuple(experts), len(records), names, float((choice[:, searched] == -1).mean()), path)
