"""Judging recipes outside a search, with the evaluator, data and normalisers that a search has.

judge = Judge(settings)                                  # the content of a search file
judge.table_of({"vit.layernorm.weight": [0.3, 0.2], ...})
judge.select_table(table).value, judge.report(table)     # the objective; mean accuracy over tasks
run_loop(driver, InProcess(judge), ...)                             # it is the loop's judge, too
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from optmerge.config.load import build_config
from optmerge.merging.coefficients import Table
from optmerge.records import Candidate, Evaluation, SplitName, Vector
from optmerge.runner.evaluator import Evaluator
from optmerge.runner.problem import open_problem
from optmerge.runner.references import absolute_references
from optmerge.runner.teachers import Teachers


class Judge:
    """Opens models and data once; the base is measured first, since objectives may be relative to it.

    Args:
        settings: The content of a search file.

    Attributes:
        problem: What was opened.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        config = absolute_references(build_config(settings, root=Path()), Path())
        self.problem = open_problem(config)
        self._evaluator = Evaluator(self.problem, Teachers.make(self.problem))
        for split in ("fit", "select"):
            measured = self._evaluator.measure(self.problem.expand(np.zeros(self.problem.space.dimension)), split)
            self.problem.objective.on(split).set_normalisers(split, measured.means)

    def fit(self, candidate: Candidate) -> Evaluation:
        """See `optmerge.runner.executor.Judge`."""
        return self._evaluator.evaluate(
            candidate.vector, "fit", examples=candidate.examples, gradient="gradient" in candidate.needs
        )

    def select(self, vector: Vector) -> Evaluation:
        """See `optmerge.runner.executor.Judge`."""
        return self._evaluator.evaluate(vector, "select")

    def select_table(self, table: Table) -> Evaluation:
        """The objective of coefficients [G, D] on select."""
        return self._evaluator.judge(self._evaluator.measure(table, "select"), "select")

    def report(self, table: Table, metric: str) -> float:
        """Mean over tasks of a metric on the report split; the only thing that is read of it."""
        means = self._evaluator.measure(table, "report", objective=False, metrics=True).means
        return math.fsum(values[metric] for values in means.values()) / len(means)

    def table_of(self, coefficients: Mapping[str, list[float]]) -> Table:
        """Coefficients by parameter, in the order of the experts, as a table of a space with one row for each.

        Raises:
            ValueError: The parameters are not those that are merged.
        """
        rows = self.problem.space.row_of
        if rows.keys() != coefficients.keys():
            apart = ", ".join(sorted(rows.keys() ^ coefficients.keys())[:5])
            raise ValueError(f"the two sides do not merge the same parameters: {apart}")
        columns = [self.problem.column(name) for name in self.problem.family.experts]
        table = np.zeros((self.problem.space.num_rows, len(self.problem.directions)))
        for name, values in coefficients.items():
            table[rows[name], columns] = values
        return table

    def size(self, split: SplitName) -> int:
        """Examples of a split, the same for every task."""
        (size,) = {task.splits[split].size for task in self.problem.calibration.tasks.values()}
        return size
