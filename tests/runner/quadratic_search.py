"""A search of a quadratic by the loop, with any driver and any executor.

outcome = run(tmp_path, "cma")
outcome = run(tmp_path, "adam", InProcess(Quadratic(fail=lambda call: call == 3)))
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from optmerge.config.base import Strict
from optmerge.config.drivers import AdamConfig, CmaConfig, OptunaConfig
from optmerge.config.natural_niches import NaturalNichesConfig
from optmerge.config.schema import BudgetConfig
from optmerge.drivers import Driver, Variables, make_driver
from optmerge.records import Candidate, Evaluation, Trajectory, Vector
from optmerge.runner.executor import Executor, InProcess
from optmerge.runner.journal import Journal
from optmerge.runner.loop import Outcome, run_loop
from optmerge.runner.state import StateStore

TARGET = np.array([0.2, 0.7, -0.1, 0.5])
CONFIGS: dict[str, Strict] = {
    "adam": AdamConfig(lr=0.05, batch=2),
    "cma": CmaConfig(sigma=0.2),
    "optuna": OptunaConfig(startup=3),
    "natural-niches": NaturalNichesConfig(mutation=0.1),
}
BUDGET = BudgetConfig(evaluations=41)


class Quadratic:
    """Distance to a target, a little different on select; counts and can be made to fail."""

    def __init__(self, fail: Callable[[int], bool] = lambda call: False) -> None:
        self.calls = 0
        self.fail = fail

    def fit(self, candidate: Candidate) -> Evaluation:
        self.calls += 1
        np.random.seed(1234)  # some evaluators do; nothing may depend on it
        if self.fail(self.calls):
            return Evaluation(math.nan, error="RuntimeError: made to fail")
        offset = candidate.vector - TARGET
        shift = 0.0 if candidate.examples is None else 0.01 * sum(candidate.examples["a"])
        return Evaluation(float(offset @ offset) + shift, {"a": shift}, gradient=2 * offset)

    def select(self, vector: Vector) -> Evaluation:
        return Evaluation(float(np.abs(vector - TARGET).sum()))


def variables() -> Variables:
    """Four variables in a box around the target."""
    return Variables(tuple("wxyz"), np.full(4, -1.0), np.full(4, 1.0), np.full(4, 0.3))


def run(
    folder: Path,
    driver: str | Driver = "adam",
    executor: Executor | None = None,
    *,
    budget: BudgetConfig = BUDGET,
    **options: Any,
) -> Outcome:
    """Search, or go on with what the folder holds.

    Args:
        folder: Gets the trajectory and the states.
        driver: One of `CONFIGS`, or a driver over `variables` at its start.
        executor: Has a `Quadratic` evaluated; None does so in this process.
        budget: The limits.
        options: Further ones of `run_loop`.
    """
    if isinstance(driver, str):
        driver = make_driver(
            CONFIGS[driver],
            variables(),
            seed=np.random.SeedSequence(5),
            fit_sizes={"a": 7},
            budget=budget.evaluations,
        )
    with closing(Trajectory.open(folder)) as trajectory:
        return run_loop(
            driver,
            executor or InProcess(Quadratic()),
            Journal(trajectory),
            budget,
            StateStore(folder / "state"),
            **options,
        )
