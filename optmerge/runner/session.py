"""The phases of one run: baselines, the stages of its schedule, the report of what they found.

result, recipe = Session(folder, problem, evaluator, journal, progress).execute(stop)

Every phase asks the journal for its evaluations, which gives those that are recorded and makes the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from optmerge.drivers import make_driver
from optmerge.drivers.base import Driver
from optmerge.errors import ConfigError, RunFailed
from optmerge.merging.recipe import Recipe
from optmerge.records import Candidate, Evaluation, Progress, Record, SplitName, Vector
from optmerge.runner.alarms import COLLAPSE, raised_alarms
from optmerge.runner.baselines import Baseline, make_baselines, representable
from optmerge.runner.budget import Progress as SearchProgress
from optmerge.runner.budget import StageLimits, next_stage, remaining
from optmerge.runner.closed_form import FAMILY as CLOSED_FORM
from optmerge.runner.closed_form import best_of_forms, best_uniform, make_closed_forms
from optmerge.runner.evaluator import Evaluator
from optmerge.runner.finalists import make_finalists
from optmerge.runner.folder import RunFolder
from optmerge.runner.geometry import make_geometry
from optmerge.runner.journal import Journal
from optmerge.runner.knowledge import make_variables
from optmerge.runner.loop import Outcome, run_loop
from optmerge.runner.problem import Problem
from optmerge.runner.reporting import Reporting, metrics_only
from optmerge.runner.result import Scored, main_metric, make_comparisons, make_rows
from optmerge.runner.shared_study import named_study
from optmerge.runner.stages import chosen_examples, look_at, measured_curvature, open_stage, prolonged
from optmerge.runner.state import StateStore
from optmerge.runner.teachers import Teachers
from optmerge.runner.warm_start import FAMILY as RECIPE
from optmerge.runner.workers import make_executor

log = logging.getLogger(__name__)

Stop = Callable[[], str | None]


@dataclass(eq=False)
class Session:
    """The phases of one run, over what the journal already holds and beyond it.

    Attributes:
        folder: The run's.
        problem: Models and data, in the current stage of the schedule.
        evaluator: Measures.
        journal: Records.
        progress: Told of long work.
    """

    folder: RunFolder
    problem: Problem
    evaluator: Evaluator
    journal: Journal
    progress: Progress

    def __post_init__(self) -> None:
        self.reporting = Reporting(self.folder, self.problem, self.evaluator, self.journal)
        self.ends: list[dict[str, Any]] = []  # of the stages so far, for result.json

    def execute(self, stop: Stop) -> tuple[dict[str, Any], Recipe | None]:
        """Baselines, search, report, recipe, result.

        Args:
            stop: Asked before every evaluation.

        Returns:
            The content of result.json, and the best recipe.

        Raises:
            RunInterrupted: ``stop`` gave a reason.
            RunFailed: The base or the best recipe cannot be judged, or no candidate can.
            ConfigError: The search cannot start where it should, or a term shows a mistake only when it measures.
        """
        config, problem = self.problem.config, self.problem
        baselines = make_baselines(problem)
        scored = self._score_baselines(baselines, stop)
        if config.closed_form:
            baselines += self._closed_forms(best_uniform(baselines, scored), scored, stop)
        ranked = self._ranked(baselines, scored)
        start = self._start(ranked)
        self.evaluator.geometry = make_geometry(problem, start)
        self.origin, self.anchor = problem.space.decode(start), start
        self.executor = make_executor(self.evaluator, self, self.folder.config())
        with closing(self.executor):
            driver, outcome = self._search(start, ranked, SearchProgress(), stop)
            while not outcome.over and self.journal.stage + 1 < len(problem.stages):
                baselines, scored, start, progress = self._enter(baselines, scored, outcome, stop)
                driver, outcome = self._search(start, self._ranked(baselines, scored), progress, stop)
        assert outcome.best is not None, "a stage without a best does not end"
        finalists, leads = self.reporting.finalists(driver, outcome)
        self.reporting.front(driver, finalists, stop=stop)
        winner = finalists[0]
        metric = main_metric(all(problem.labelled(task) for task in config.tasks))
        best = self._best(outcome)
        recipe = self.problem.in_stage(best.stage).recipe(
            outcome.best, {"run": self.folder.path.name, "driver": self.reporting.name, "seed": config.seed}
        )
        recipe = problem.deltas.kept_in(recipe, self.folder.path)
        recipe.save(self.folder.path / "recipe.yaml")
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
        if not config.executor.in_process:
            result["workers"] = {"count": config.executor.workers, "idle": outcome.idle}
        if len(problem.stages) > 1:
            result["stages"] = self.ends
        self.folder.write_json("result.json", result)
        return result, recipe

    def fit(self, candidate: Candidate) -> Evaluation:
        """The objective of a candidate on its part of the fit split."""
        return self.evaluator.fit(candidate)

    def select(self, vector: Vector) -> Evaluation:
        """The objective of a vector on the whole select split, with the metrics that need no label."""
        return self.evaluator.select(vector)

    def _score_baselines(self, baselines: Sequence[Baseline], stop: Stop) -> list[Scored]:
        scored: list[Scored] = []
        self.reporting.baselines |= {baseline.name: baseline for baseline in baselines}
        for done, baseline in enumerate(baselines):
            self.journal.go_on(stop)
            if baseline.name == "base":
                self._baseline(baseline, "fit")  # sets the normalisers of the fit split
            self._report_baseline(baseline, self._baseline(baseline, "select")[0], scored)
            self.progress("baselines", done + 1, len(baselines))
        return scored

    def _closed_forms(self, towards: float, scored: list[Scored], stop: Stop) -> list[Baseline]:
        """Score closed forms on select, and the best of each form on report, which ``scored`` gets; gives these."""
        made = make_closed_forms(self.problem, towards=towards, progress=self.progress)
        records: dict[str, Record] = {}
        for done, baseline in enumerate(made):
            self.journal.go_on(stop)
            records[baseline.name] = self._baseline(baseline, "select")[0]
            self.progress("closed forms", done + 1, len(made))
        best = best_of_forms(made, {name: record.value for name, record in records.items() if record.value is not None})
        self.reporting.baselines |= {baseline.name: baseline for baseline in best}
        for baseline in best:
            self.journal.go_on(stop)
            self._report_baseline(baseline, records[baseline.name], scored)
        return best

    def _report_baseline(self, baseline: Baseline, select: Record, scored: list[Scored]) -> None:
        """Score a baseline on report; ``scored`` gets it where it has values on both splits."""
        report, evaluation = self._baseline(baseline, "report")
        if report.error or select.error:
            log.warning("the baseline %s failed: %s", baseline.name, report.error or select.error)
            return
        seconds = sum(select.seconds.values()) + sum(report.seconds.values())
        scores = self.reporting.scores(report, evaluation)
        scored.append(Scored(baseline.name, baseline.family, select, report, scores, 1, seconds))

    def _baseline(self, baseline: Baseline, split: SplitName) -> tuple[Record, Evaluation]:
        judged = split != "report"  # the report gives metrics; it is no objective

        def make() -> Evaluation:
            found = self.reporting.measurements.measure(baseline.table, split, objective=judged, metrics=split != "fit")
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
        """The configured start: a number, a recipe, or the baseline within the space that is best on select."""
        problem = self.problem
        start = problem.config.space.start
        if problem.warm_start is not None:
            ranked = [baseline for baseline in ranked if baseline.family == RECIPE]
            if not ranked:
                raise RunFailed(f"The recipe {start} could not be scored on select, so nothing can start from it.")
        elif start == "closed-form":
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

    def _search(
        self, start: Vector, ranked: Sequence[Baseline], before: SearchProgress, stop: Stop
    ) -> tuple[Driver, Outcome]:
        """One stage: its driver, from ``start`` to the end of the stage or the search."""
        problem, number = self.problem, self.journal.stage
        config, settings = problem.config, problem.stages[number].settings
        limits = StageLimits(settings.evaluations, settings.patience)
        budget = config.budget
        if config.objective != problem.stages[-1].config.objective:  # the target is one of the search's end
            budget = budget.model_copy(update={"target": None})
        sizes = problem.calibration.fit_sizes()
        chosen = chosen_examples(sizes, settings.examples, seed=config.seed)
        known = self.journal.trajectory.records[: self.journal.cursor]
        variables = make_variables(
            problem,
            start,
            (baseline.table for baseline in ranked),
            curvature=measured_curvature(known, (*problem.earlier, problem.space)),
        )
        driver = make_driver(
            named_study(config.driver, problem, stage=number),
            variables,
            seed=np.random.SeedSequence([config.seed, number] if number else config.seed),
            fit_sizes=sizes if chosen is None else {task: len(positions) for task, positions in chosen.items()},
            budget=remaining(budget, before, limits),
        )
        states = self.folder.path / "state"
        self.executor.use(self.evaluator, self.anchor)
        with closing(driver):
            outcome = run_loop(
                driver,
                self.executor,
                self.journal,
                budget,
                StateStore(states / f"stage-{number + 1}" if number else states),
                stop=stop,
                collapse=config.alarms.collapse,
                limits=limits,
                before=before,
                look=lambda candidate: look_at(candidate, chosen),
                deterministic=config.executor.deterministic,
            )
        if outcome.best is None:
            raise RunFailed(
                f"{outcome.reason}, and no candidate has a value on select; see trajectory.jsonl for the reasons."
            )
        best = self._best(outcome)
        self.ends.append(
            {
                "driver": driver.name,
                "granularity": config.space.granularity,
                "dimension": problem.space.dimension,
                "evaluations": outcome.progress.stage_evaluations,
                "reason": outcome.reason,
                "start": before.best,
                "best": {"record": best.id, "select": best.value},
            }
        )
        return driver, outcome

    def _enter(
        self, baselines: Sequence[Baseline], scored: Sequence[Scored], outcome: Outcome, stop: Stop
    ) -> tuple[list[Baseline], list[Scored], Vector, SearchProgress]:
        """Go on to the next stage, from the best so far; baselines and start are judged anew by another objective.

        Returns:
            The baselines in the stage's groups, their scores, the stage's start, and where the search stands.
        """
        before, number = self.problem, self.journal.stage + 1
        self.problem = problem = open_stage(before, number)
        self.journal.stage = number
        comparable = problem.objective is before.objective
        if not comparable:
            self.evaluator.teachers = Teachers({})  # the last objective's are let go before there are others
            self.evaluator.teachers = Teachers.make(problem, self.progress)
        self.evaluator = Evaluator(problem, self.evaluator.teachers)
        self.reporting = Reporting(self.folder, problem, self.evaluator, self.journal)
        table = problem.expand_record(self._best(outcome))[:, problem.columns]
        problem.space = problem.space.started_at(table)
        start = problem.space.encode(table)
        if not problem.space.reaches(table):
            raise ConfigError(
                f"schedule.{number}.granularity: the search space of this stage cannot begin at the coefficients of "
                "the one before. Give both stages the same granularity."
            )
        self.origin = prolonged(self.origin, before.space, problem.space)
        self.anchor = problem.space.encode(self.origin)
        self.evaluator.geometry = make_geometry(problem, self.anchor)
        baselines = [replace(b, table=prolonged(b.table, before.space, problem.space)) for b in baselines]
        self.reporting.baselines = {baseline.name: baseline for baseline in baselines}
        progress = next_stage(outcome.progress, comparable=comparable)
        if comparable:
            return baselines, list(scored), start, progress
        scored = self._judge_baselines(scored, stop)
        record, evaluation = self.reporting.next(
            "select",
            driver=problem.config.driver.name,
            split="select",
            vector=start,
            make=lambda: self.select(start),
        )
        if not evaluation.failed and (problem.config.alarms.collapse == "warn" or COLLAPSE not in record.alarms):
            progress = replace(progress, best=evaluation.value, best_record=record.id)
        return baselines, scored, start, progress

    def _judge_baselines(self, scored: Sequence[Scored], stop: Stop) -> list[Scored]:
        """The baselines' scores with the values that this stage's objective gives them; what fails is left out."""
        again: list[Scored] = []
        self._baseline(self.reporting.baselines["base"], "fit")  # sets the normalisers of the fit split
        for done, row in enumerate(scored):
            self.journal.go_on(stop)
            select, _ = self._baseline(self.reporting.baselines[row.name], "select")
            if select.error:
                log.warning("the baseline %s failed: %s", row.name, select.error)
            else:
                again.append(replace(row, select=select))
            self.progress("baselines", done + 1, len(scored))
        return again

    def _best(self, outcome: Outcome) -> Record:
        assert outcome.progress.best_record is not None, "a stage without a best does not end"
        return self.journal.trajectory.records[outcome.progress.best_record]
