"""A mirror of the fit evaluations as Optuna trials, for optuna-dashboard.

    optmerge dashboard runs/first          # or: optuna-dashboard runs/first/optuna.journal

The mirror is written, never read back: on a resume it is rebuilt from the trajectory. Losing it loses nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optmerge.records import Record, Vector
from optmerge.space.names import VariableNames
from optmerge.tracking.coefficients import coefficient_spans, layer_of, split_variable
from optmerge.tracking.view import RunView

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

FILE = "optuna.journal"
MOST = 5_000  # variables of a trial; a candidate of more is mirrored by its means alone, or the file grows without end
MANY = 60  # above so many variables nobody reads them one by one: means by direction and layer go beside them


class OptunaMirror:
    """Writes every fit evaluation as a trial into ``optuna.journal``; failed ones as failed trials.

    The rungs of a vector are one trial, with the value at each; a vector that a pruner dropped is a pruned trial.
    """

    label = "the Optuna mirror"

    def __init__(self) -> None:
        self._study: optuna.Study | None = None
        self._variables = [VariableNames(())]  # of each stage
        self._bounds = (-np.inf, np.inf)
        self._mirrored: set[int] = set()
        self._vector: str | None = None  # the hash of the last trial's
        self._rungs: list[float] = []  # its values so far

    def start(self, run: Path) -> None:
        """Make the mirror anew from what the trajectory holds."""
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        view = RunView.open(run)
        self._variables = [view.variables(stage) for stage in range(len(view.stages))]
        self._bounds = _widest_bounds(view)
        for leftover in (FILE, f"{FILE}.lock"):  # a killed process leaves its lock behind
            (run / leftover).unlink(missing_ok=True)
        storage = JournalStorage(JournalFileBackend(str(run / FILE)))
        before = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
        try:
            self._study = optuna.create_study(storage=storage, study_name=view.name, direction="minimize")
        finally:
            optuna.logging.set_verbosity(before)
        self._study.set_user_attr("driver", view.driver)
        self._study.set_user_attr("dimension", len(self._variables[0]))
        self._add(view.records)

    def record(self, record: Record) -> None:
        """Mirror one record."""
        self._add([record])

    def progress(self, stage: str, done: int, total: int | None) -> None:
        """Nothing: the mirror holds evaluations only."""

    def finish(self, run: Path, reason: str) -> None:
        """Catch up with the trajectory, and note how the run ended."""
        if self._study is None:
            return
        view = RunView.open(run)
        self._add(view.records)
        self._study.set_user_attr("reason", reason)
        if view.best is not None:
            self._study.set_user_attr("best select value", view.best.value)
            self._study.set_user_attr("best record", view.best.record)

    def _add(self, records: Sequence[Record]) -> None:
        import optuna
        from optuna.distributions import BaseDistribution, FloatDistribution
        from optuna.trial import TrialState

        for record in records:
            if record.phase != "search" or record.id in self._mirrored or self._study is None:
                continue
            self._mirrored.add(record.id)
            if record.vector_sha256 != self._vector:
                self._vector, self._rungs = record.vector_sha256, []
            if record.share < 1.0 and record.value is not None and not record.pruned:
                self._rungs.append(record.value)
                continue
            reached = [*self._rungs, *([] if record.value is None else [record.value])]
            self._rungs = []
            variables = self._variables[record.stage]
            params: dict[str, float] = {}
            distributions: dict[str, BaseDistribution] = {}
            if record.vector is not None and len(record.vector) <= MOST:
                low = min(self._bounds[0], float(record.vector.min()))
                high = max(self._bounds[1], float(record.vector.max()))
                names = list(variables) or [f"x{i}" for i in range(len(record.vector))]
                params = {name: float(x) for name, x in zip(names, record.vector, strict=True)}
                distributions = dict.fromkeys(names, FloatDistribution(low, high))
            attributes: dict[str, Any] = {
                "record": record.id,
                "generation": record.generation,
                "elapsed": record.elapsed,
                **{f"task/{task}": value for task, value in record.per_task.items()},
            }
            if record.stage:
                attributes["stage"] = record.stage
            if record.error is not None:
                attributes["error"] = record.error
            if record.vector is not None and len(variables) == len(record.vector) > MANY:
                attributes |= group_means(variables, record.vector)
            self._study.add_trial(
                optuna.trial.create_trial(
                    state=TrialState.FAIL
                    if record.value is None
                    else TrialState.PRUNED
                    if record.pruned
                    else TrialState.COMPLETE,
                    value=None if record.pruned else record.value,
                    intermediate_values=dict(enumerate(reached)) if len(reached) > 1 or record.pruned else None,
                    params=params,
                    distributions=distributions,
                    user_attrs=attributes,
                )
            )


def group_means(names: VariableNames, vector: Vector) -> dict[str, float]:
    """Mean coefficients by direction, and by layer over all directions.

    >>> import numpy as np
    >>> group_means(VariableNames(["layer.0/a", "layer.0/b", "layer.1/a"]), np.array([1.0, 3.0, 5.0]))
    {'mean/a': 3.0, 'mean/b': 3.0, 'mean/layer 0': 2.0, 'mean/layer 1': 5.0}
    """
    members: dict[str, list[Vector]] = {}
    layers: dict[str, list[Vector]] = {}
    for name, at in coefficient_spans(names):
        group, direction = split_variable(name)
        members.setdefault(f"mean/{direction}", []).append(vector[at])
        layer = layer_of(group)
        layers.setdefault("mean/outside layers" if layer is None else f"mean/layer {layer}", []).append(vector[at])
    return {name: float(np.mean(np.concatenate(values))) for name, values in (members | layers).items()}


def _widest_bounds(view: RunView) -> tuple[float, float]:
    space = view.settings.get("space") or {}
    every = [space.get("bounds"), *(rule.get("bounds") for rule in space.get("rules") or [])]
    pairs = [pair for pair in every if pair]
    if not pairs:
        return np.inf, -np.inf  # the vectors themselves set the bounds
    return float(min(low for low, _ in pairs)), float(max(high for _, high in pairs))
