"""A whole search: open, teach, score baselines, loop, report. `resume` takes the same way over the recorded part.

run = search(config, root=Path("."))
run.recipe.save(Path("best.yaml"))
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optmerge.config.schema import SearchConfig
from optmerge.drivers import make_driver
from optmerge.drivers.base import Driver
from optmerge.errors import ConfigError, RunFailed, RunInterrupted
from optmerge.merging.recipe import Recipe
from optmerge.records import Candidate, Evaluation, Progress, Record, Sink, SplitName, Trajectory, Vector
from optmerge.runner.alarms import Alarms, raised_alarms
from optmerge.runner.baselines import Baseline, CachedMeasurements, make_baselines, representable
from optmerge.runner.closed_form import FAMILY as CLOSED_FORM
from optmerge.runner.closed_form import best_uniform, make_closed_forms
from optmerge.runner.evaluator import Evaluator
from optmerge.runner.finalists import make_finalists
from optmerge.runner.folder import RunFolder
from optmerge.runner.geometry import make_geometry
from optmerge.runner.journal import Journal
from optmerge.runner.knowledge import make_variables
from optmerge.runner.loop import run_loop
from optmerge.runner.manifest import check_manifest, make_manifest
from optmerge.runner.packing import check_packing
from optmerge.runner.problem import Problem, absolute_references, open_problem
from optmerge.runner.reporting import Reporting, metrics_only
from optmerge.runner.result import Scored, main_metric, make_comparisons, make_rows
from optmerge.runner.shared_study import check_study, named_study
from optmerge.runner.state import StateStore
from optmerge.runner.teachers import Teachers

log = logging.getLogger(__name__)

Stop = Callable[[], str | None]


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run: its folder, the best recipe, and the content of result.json."""

    folder: Path
    recipe: Recipe | None
    result: dict[str, Any]


def search(config: SearchConfig, *, root: Path, sinks: Sequence[Sink] = (), stop: Stop = lambda: None) -> Run:
    """Run a search from its start.

    Args:
        config: What to search; relative paths are relative to ``root``.
        root: Folder of the search file.
        sinks: Views that are fed while it runs.
        stop: Asked before every evaluation; a reason ends the run with its state saved.

    Raises:
        UserError: Something that the user can mend, found before any evaluation, or by the first that shows it.
        RunInterrupted: ``stop`` gave a reason.
        RunFailed: No candidate could be evaluated any more.
    """
    config = absolute_references(config, root)
    RunFolder.require_free(root / config.output)
    check_study(config.driver)
    problem = open_problem(config, progress=_fan_out(sinks))  # a user's mistake is found before anything is written
    folder = RunFolder.create(root / config.output, config)
    with folder.locked():
        return _run(folder, problem, sinks, stop)


def resume(path: Path, *, sinks: Sequence[Sink] = (), stop: Stop = lambda: None) -> Run:
    """Continue a run from wherever it was interrupted; a finished one is returned as it is.

    Raises:
        RunError: There is no run, or its models, data or machine changed since.
    """
    folder = RunFolder.open(path)
    with folder.locked():
        result = folder.read_json("result.json")
        if result is not None and result["status"] == "finished":
            return Run(path, Recipe.load(path / "recipe.yaml"), result)
        begun = folder.read_json("manifest.json") or {}
        check_study(folder.config().driver)
        problem = open_problem(
            folder.config(), progress=_fan_out(sinks), form=begun.get("gradient"), kept=begun.get("kept")
        )
        return _run(folder, problem, sinks, stop)


def _fan_out(sinks: Sequence[Sink]) -> Progress:
    def progress(stage: str, done: int, total: int | None) -> None:
        for sink in sinks:
            sink.progress(stage, done, total)

    return progress


def _run(folder: RunFolder, problem: Problem, sinks: Sequence[Sink], stop: Stop) -> Run:
    progress = _fan_out(sinks)
    manifest = make_manifest(problem)
    stored = folder.read_json("manifest.json")
    if stored is None:
        folder.write_json("manifest.json", manifest)
    else:
        check_manifest(stored, manifest, folder.path)
    folder.write_json("result.json", {"status": "running", "reason": ""})
    for sink in sinks:
        sink.start(folder.path)
    check_packing(problem)
    evaluator = Evaluator(problem, Teachers.make(problem, progress))
    trajectory = Trajectory.open(folder.path)
    try:
        session = _Session(
            folder, problem, evaluator, Journal(trajectory, sinks, Alarms(problem.config.alarms)), progress
        )
        result, recipe = session.execute(stop)
    except (RunInterrupted, RunFailed, ConfigError) as ended:  # a term's mistake may only show when it measures
        status = "interrupted" if isinstance(ended, RunInterrupted) else "failed"
        folder.write_json("result.json", {"status": status, "reason": str(ended)})
        for sink in sinks:
            sink.finish(folder.path, str(ended))
        raise
    finally:
        trajectory.close()
    for sink in sinks:
        sink.finish(folder.path, result["reason"])
    return Run(folder.path, recipe, result)


class _Session:
    """The phases of one run, over what the journal already holds and beyond it."""

    def __init__(
        self,
        folder: RunFolder,
        problem: Problem,
        evaluator: Evaluator,
        journal: Journal,
        progress: Progress,
    ) -> None:
        self.folder = folder
        self.problem = problem
        self.evaluator = evaluator
        self.journal = journal
        self.progress = progress
        self.measurements = CachedMeasurements(evaluator)
        self.reporting = Reporting(folder, problem, evaluator, journal, self.measurements)

    def execute(self, stop: Stop) -> tuple[dict[str, Any], Recipe | None]:
        """Baselines, search, report, recipe, result."""
        config, problem = self.problem.config, self.problem
        baselines = make_baselines(problem)
        scored = self._score_baselines(baselines, stop)
        if config.closed_form:
            closed = make_closed_forms(problem, towards=best_uniform(baselines, scored), progress=self.progress)
            scored += self._score_baselines(closed, stop)
            baselines += closed
        ranked = self._ranked(baselines, scored)
        start = self._start(ranked)
        self.evaluator.geometry = make_geometry(problem, start)
        driver = self._driver(start, ranked)
        with closing(driver):
            outcome = run_loop(
                driver,
                self,
                self.journal,
                config.budget,
                StateStore(self.folder.path / "state"),
                stop=stop,
                collapse=config.alarms.collapse,
            )
        if outcome.best is None:
            raise RunFailed(
                f"{outcome.reason}, and no candidate has a value on select; see trajectory.jsonl for the reasons."
            )
        finalists, leads = self.reporting.finalists(driver, outcome)
        self.reporting.front(driver, finalists)
        winner = finalists[0]
        metric = main_metric(all(problem.labelled(task) for task in config.tasks))
        recipe = problem.recipe(
            outcome.best, {"run": self.folder.path.name, "driver": driver.name, "seed": config.seed}
        )
        recipe = problem.deltas.kept_in(recipe, self.folder.path)
        recipe.save(self.folder.path / "recipe.yaml")
        best = self.journal.trajectory.records[outcome.progress.best_record or 0]
        result = {
            "status": "finished",
            "reason": outcome.reason,
            "best": {"record": best.id, "select": best.value, "evaluations": outcome.progress.evaluations},
            "metric": metric,
            "rows": make_rows([*scored, winner], metric, seed=config.seed),
            "finalists": make_finalists(finalists, metric, seed=config.seed, leads=leads),
            "comparison": make_comparisons(winner, scored, metric, seed=config.seed),
            "evaluations": outcome.progress.evaluations,
            "seconds": outcome.progress.seconds,
            "alarms": [asdict(alarm) for alarm in raised_alarms(self.journal.trajectory.records)],
            "transductive": config.splits.transductive,
            "labels": {task: problem.labelled(task) for task in config.tasks},
        }
        self.folder.write_json("result.json", result)
        return result, recipe

    def fit(self, candidate: Candidate) -> Evaluation:
        """The objective of a candidate on its part of the fit split."""
        return self.evaluator.evaluate(
            candidate.vector,
            "fit",
            examples=candidate.examples,
            gradient="gradient" in candidate.needs,
            jacobian="jacobian" in candidate.needs,
            per_example="per_example" in candidate.needs,
        )

    def select(self, vector: Vector) -> Evaluation:
        """The objective of a vector on the whole select split, with the metrics that need no label."""
        return self.evaluator.evaluate(vector, "select", metrics=True)

    def _score_baselines(self, baselines: Sequence[Baseline], stop: Stop) -> list[Scored]:
        scored: list[Scored] = []
        self.reporting.baselines |= {baseline.name: baseline for baseline in baselines}
        for done, baseline in enumerate(baselines):
            why = None if self.journal.replaying else stop()
            if why:
                raise RunInterrupted(why)
            if baseline.name == "base":
                self._baseline(baseline, "fit")  # sets the normalisers of the fit split
            select, _ = self._baseline(baseline, "select")
            report, evaluation = self._baseline(baseline, "report")
            if report.error or select.error:
                log.warning("the baseline %s failed: %s", baseline.name, report.error or select.error)
            else:
                seconds = sum(select.seconds.values()) + sum(report.seconds.values())
                scores = self.reporting.scores(report, evaluation)
                scored.append(Scored(baseline.name, baseline.family, select, report, scores, 1, seconds))
            self.progress("baselines", done + 1, len(baselines))
        return scored

    def _baseline(self, baseline: Baseline, split: SplitName) -> tuple[Record, Evaluation]:
        judged = split != "report"  # the report gives metrics; it is no objective

        def make() -> Evaluation:
            found = self.measurements.measure(baseline.table, split, objective=judged, metrics=split != "fit")
            if isinstance(found, Evaluation):
                return found
            if baseline.name == "base" and judged:
                self.problem.objective.on(split).set_normalisers(split, found.means)
            return self.evaluator.judge(found, split) if judged else metrics_only(found)

        record, evaluation = self.reporting.next(
            "baseline", driver="baseline", split=split, vector=None, make=make, name=baseline.name
        )
        if baseline.name == "base":
            if record.error:
                raise RunFailed(f"The base model itself cannot be judged on {split}: {record.error}.")
            if judged:
                self.problem.objective.on(split).set_normalisers(split, record.metrics)
        return record, evaluation

    def _ranked(self, baselines: Sequence[Baseline], scored: Sequence[Scored]) -> list[Baseline]:
        """The baselines within the space, the best on select first."""
        able = {baseline.name: baseline for baseline in baselines if representable(self.problem, baseline)}
        values = {row.name: row.select.value for row in scored if row.name in able and row.select.value is not None}
        return [able[name] for name in sorted(values, key=values.__getitem__)]

    def _start(self, ranked: Sequence[Baseline]) -> Vector:
        """The configured start, or the baseline within the space that is best on select."""
        problem = self.problem
        start = problem.config.space.start
        if start == "closed-form":
            ranked = [baseline for baseline in ranked if baseline.family == CLOSED_FORM]
            if not ranked:
                raise ConfigError(
                    "space.start is closed-form, and no closed-form baseline lies within the search space: its bounds "
                    "are too narrow, some of its coefficients are tied or normalised, or 'experts' is not among the "
                    "directions. Widen it, or set space.start to best-baseline."
                )
        elif start != "best-baseline" or not ranked:
            return problem.space.start
        log.info("the search starts from the baseline %s", ranked[0].name)
        table = ranked[0].table[:, problem.columns]
        problem.space = problem.space.started_at(table)
        return problem.space.encode(table)

    def _driver(self, start: Vector, ranked: Sequence[Baseline]) -> Driver:
        config = self.problem.config
        variables = make_variables(self.problem, start, (baseline.table for baseline in ranked))
        return make_driver(
            named_study(config.driver, self.problem, stage=0),
            variables,
            seed=np.random.SeedSequence(config.seed),
            fit_sizes=self.problem.calibration.fit_sizes(),
            budget=config.budget.evaluations,
        )
