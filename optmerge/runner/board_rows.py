"""The rows of a leaderboard, each measured once and kept: baselines, methods as published or tuned, finished searches.

    board = BoardRows(folder, problem, maker, progress, stop)      # judges the base
    rows = board.baselines(without_average=True)
    rows += board.methods([IsoCConfig()], tune=40)

What goes wrong in a row becomes its error, and the rest goes on; such a row is measured again the next time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from optmerge.config.methods import CustomMethodConfig, MethodSettings
from optmerge.config.methods_page import method_row
from optmerge.errors import RunError, RunFailed, RunInterrupted
from optmerge.merging.coefficients import Table
from optmerge.merging.recipe import Recipe
from optmerge.records import Evaluation, Progress, SplitName
from optmerge.runner.baselines import CachedMeasurements, make_baselines
from optmerge.runner.board import TUNED, BoardRow, Kind, RowStore
from optmerge.runner.evaluator import Evaluator, Measurement
from optmerge.runner.finished import FinishedSearch, needs_of_search, require_same
from optmerge.runner.folder import RunFolder
from optmerge.runner.making import Maker
from optmerge.runner.problem import Problem
from optmerge.runner.result import Scores, main_metric
from optmerge.runner.teachers import Teachers
from optmerge.runner.tuning import Tuning

log = logging.getLogger(__name__)

AVERAGE = "average"  # a method, and one of the uniform merges

Stop = Callable[[], str | None]
Scored = tuple[BoardRow, Scores]


class BoardRows:
    """Measures rows and keeps them; the base is judged first, as the objective may be relative to it.

    Attributes:
        metric: What the report shows of every task: the labelled metric, or agreement with the expert.

    Args:
        folder: The leaderboard's, with what was measured before.
        problem: The search's models and data, with one coefficient per direction.
        maker: Makes the deltas of methods, one at a time.
        progress: Told of long work.
        stop: Asked before every row and every point that is tuned; a reason ends the measuring.

    Raises:
        RunFailed: The base itself cannot be judged.
    """

    def __init__(self, folder: RunFolder, problem: Problem, maker: Maker, progress: Progress, stop: Stop) -> None:
        self._folder = folder
        self._problem = problem
        self._maker = maker
        self._progress = progress
        self._stop = stop
        self._rows = RowStore(folder)
        self._teachers = Teachers.make(problem, progress)
        self.metric = main_metric(all(problem.labelled(task) for task in problem.config.tasks))
        base = np.zeros((problem.space.num_rows, len(problem.directions)))
        found = self._measured(problem, base, "select")
        if isinstance(found, Evaluation):
            raise RunFailed(f"The base model itself cannot be judged on select: {found.error}.")
        problem.objective.on("select").set_normalisers("select", found.means)

    def baselines(self, *, without_average: bool) -> list[Scored]:
        """Base, experts, and uniform task arithmetic; the average where no method is it."""
        wanted = [b for b in make_baselines(self._problem) if not (without_average and b.name == AVERAGE)]
        kinds: dict[str, Kind] = {"base": "base", "expert": "expert", "uniform": "uniform"}
        rows = []
        for done, baseline in enumerate(wanted):
            row = BoardRow(baseline.name, kinds[baseline.family])
            table = baseline.table
            rows.append(self._kept(row, [table.tolist()], partial(self._scored, row, self._problem, table)))
            self._progress("baselines", done + 1, len(wanted))
        return rows

    def methods(self, methods: Sequence[MethodSettings], tune: int | None) -> list[Scored]:
        """Every method as published, and tuned where that is wanted."""
        rows = []
        for done, config in enumerate(methods):
            row, scores = self.method(config.method_name(), config)
            rows.append((row, scores))
            if tune is not None:
                name = f"{config.method_name()}{TUNED}"
                tuned = BoardRow(name, "tuned", needs=row.needs, evaluations=tune)
                identity = [tune, self._problem.config.seed, dict(row.settings), row.scale]
                rows.append(self._kept(tuned, identity, partial(self._tuned, tuned, config, tune)))
            self._progress("methods", done + 1, len(methods))
        return rows

    def method(self, name: str, config: MethodSettings) -> Scored:
        """One method at its settings and its published scale."""
        row = BoardRow(
            name,
            "uniform" if name == AVERAGE else "method",
            settings=_settings(config),
            scale=config.facts.scale,
            needs=method_row(type(config)).needs,
        )
        content = [config.content] if isinstance(config, CustomMethodConfig) else []
        return self._kept(row, ["published", *content], partial(self._method, row, config))

    def searches(self, found: Sequence[FinishedSearch], manifest: Mapping[str, Any]) -> list[Scored]:
        """The best recipes of finished searches, judged anew.

        Raises:
            RunError: A search had other models, data or splits.
        """
        rows = []
        for path, folder, result in found:
            require_same(path, folder, manifest)
            recipe = Recipe.load(path / "recipe.yaml")
            driver = next((row["name"] for row in result["rows"] if row["kind"] == "search"), "search")
            names = [path.resolve().name for path, _, _ in found]
            told = path.resolve() if names.count(path.resolve().name) > 1 else path.resolve().name
            row = BoardRow(
                f"{driver} ({told})",
                "search",
                needs=needs_of_search(folder.config()),
                seconds=float(result["seconds"]),
                evaluations=int(result["evaluations"]),
            )
            rows.append(self._kept(row, [recipe.to_yaml()], partial(self._recipe, row, recipe)))
        return rows

    def _kept(self, row: BoardRow, identity: Sequence[Any], measure: Callable[[], Scored]) -> Scored:
        """A row from the folder, or measured and put there; what goes wrong becomes its error."""
        identity = [row.kind, dict(row.settings), row.scale, *identity]
        found = self._rows.get(row.name, identity)
        if found is not None:
            return found
        why = self._stop()
        if why:
            raise RunInterrupted(why)
        try:
            made, scores = measure()
        except (RunInterrupted, RunError):
            raise
        except Exception as error:  # a decomposition that does not converge, memory that runs out: the rest goes on
            log.debug("%s failed", row.name, exc_info=True)
            told = " ".join(str(error).split()) or "no message"
            made, scores = replace(row, error=f"{type(error).__name__}: {told[:300]}"), {}
        if made.error is None:
            self._rows.put(row.name, identity, made, scores)
        else:
            log.warning("%s failed: %s", row.name, made.error)
        return made, scores

    def _method(self, row: BoardRow, config: MethodSettings) -> Scored:
        made = self._maker.make(config)
        cost = made.cost
        row = replace(row, seconds=cost.seconds, statistics=cost.statistics, peak=cost.peak)
        return self._scored(row, made.problem, self._uniform(made.problem, config.facts.scale))

    def _tuned(self, row: BoardRow, config: MethodSettings, evaluations: int) -> Scored:
        """Tune on select, then score what was chosen on report, once."""
        tuning, seed = Tuning(config, self._maker, self._judged), self._problem.config.seed
        identity = json.dumps([tuning.identity(), evaluations, seed])
        folder = (
            self._folder.path / "tuned" / f"{config.method_name()}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
        )
        try:
            tuned = tuning.run(folder, evaluations=evaluations, seed=seed, stop=self._stop)
        except RunFailed:
            shutil.rmtree(folder)  # the next time, it is tried again
            raise
        made = self._maker.make(tuned.config)
        row = replace(
            row,
            settings=_settings(tuned.config),
            scale=tuned.scale,
            seconds=tuned.seconds,
            statistics=made.cost.statistics,
            peak=made.cost.peak,
        )
        return self._scored(row, made.problem, self._uniform(made.problem, tuned.scale))

    def _recipe(self, row: BoardRow, recipe: Recipe) -> Scored:
        return self._scored(row, *self._maker.along_recipe(recipe), cached=False)

    def _scored(self, row: BoardRow, problem: Problem, table: Table, *, cached: bool = True) -> Scored:
        """A merge's objective on select, and its report scores."""
        problem.engine.forget()  # another one may have written into the resident model
        select = self._measured(problem, table, "select", cached=cached)
        if not isinstance(select, Evaluation):
            select = Evaluator(problem, self._teachers).judge(select, "select")
        if select.error:
            return replace(row, error=select.error), {}
        report = self._measured(problem, table, "report", cached=cached)
        if isinstance(report, Evaluation):
            return replace(row, error=report.error), {}
        means = {task: dict(values) for task, values in report.means.items()}
        bad = [
            f"{task}/{metric}" for task, of in means.items() for metric, mean in of.items() if not math.isfinite(mean)
        ]
        if bad:
            return replace(row, error=f"not a finite number on report: {', '.join(bad)}"), {}
        return replace(row, select=float(select.value), report=means), report.per_example

    def _judged(self, problem: Problem, scale: float) -> Evaluation:
        """The objective of a method's delta on select."""
        problem.engine.forget()
        found = self._measured(problem, self._uniform(problem, scale), "select")
        return found if isinstance(found, Evaluation) else Evaluator(problem, self._teachers).judge(found, "select")

    def _measured(
        self, problem: Problem, table: Table, split: SplitName, *, cached: bool = True
    ) -> Measurement | Evaluation:
        """What a split says of coefficients; where memory runs out, again in smaller steps."""
        evaluator = Evaluator(problem, self._teachers)
        judged = split != "report"
        if cached:
            kept = CachedMeasurements(evaluator)

            def measure() -> Measurement | Evaluation:
                return kept.measure(table, split, objective=judged, metrics=True)
        else:

            def measure() -> Measurement | Evaluation:
                return evaluator.attempt(
                    lambda: evaluator.measure(table, split, objective=judged, metrics=True, per_example=not judged),
                    split,
                )

        found = measure()
        while isinstance(found, Evaluation) and found.batch_tokens is not None:
            found = measure()
        return found

    @staticmethod
    def _uniform(problem: Problem, scale: float) -> Table:
        return np.full((problem.space.num_rows, len(problem.directions)), scale)


def _settings(config: MethodSettings) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude={"name"})
