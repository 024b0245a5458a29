"""Records as rows of metrics, under the names that Weights & Biases shows.

    rows = RowMaker(variables)
    rows.row(record)          # {"evaluations": 12, "objective/value": 0.41, "task/topic": 0.4, ...}

Every row carries ``evaluations`` (the axis of all charts) and ``record`` (the trajectory's id), so a row without
``record`` is not an evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeGuard

import numpy as np
import numpy.typing as npt

from optmerge.records import EvaluationCount, Record
from optmerge.runner.alarms import COLLAPSE
from optmerge.space.names import VariableNames
from optmerge.tracking.coefficients import coefficient_spans, split_variable

Value = float | int | str


class RowMaker:
    """Turns records into rows; it must see every record once, in order, also those that are not logged.

    Args:
        variables: Names of the vector's coordinates, as a run's manifest has them.
        later: Those of the stages after the first, where the search has a schedule.
        collapsed: Whether an iterate that an alarm calls collapsed may be the best.
    """

    def __init__(
        self, variables: Sequence[str], later: Sequence[Sequence[str]] = (), *, collapsed: bool = False
    ) -> None:
        self._collapsed = collapsed
        self._count = EvaluationCount()
        self._best: float | None = None
        self._generation: list[float] = []
        self._generation_number = (0, -1)  # of a stage
        self._before: Record | None = None
        self._memory: dict[str, float] = {}  # part -> MiB by which it has raised the peak so far
        stages = [VariableNames(names) for names in (variables, *later)]
        self._columns = [_columns(names) for names in stages]
        self._dimensions = [len(names) for names in stages]

    def row(self, record: Record) -> dict[str, Value]:
        """One record as a row."""
        row: dict[str, Value | None] = {
            "evaluations": self._count(record),
            "record": record.id,
            "phase": record.phase,
            "split": record.split,
            "name": record.name,
            "error": record.error,
            "time/elapsed": record.elapsed,
            **{f"time/{part}": seconds for part, seconds in record.seconds.items()},
            "time/driver": driver_seconds(record, self._before),
        }
        for part, rise in record.memory.items():
            self._memory[part] = self._memory.get(part, 0.0) + rise
        row |= {f"memory/{part}": raised for part, raised in self._memory.items()}
        self._before = record
        if record.stage:
            row["stage"] = record.stage
        row |= getattr(self, f"_{record.phase}")(record)
        return {key: value for key, value in row.items() if _loggable(value)}

    def _search(self, record: Record) -> Mapping[str, Value | None]:
        if (record.stage, record.generation) != self._generation_number:
            self._generation_number, self._generation = (record.stage, record.generation), []
        if record.share < 1.0:  # on a share of the examples: not to be compared with the others
            return {"rung/value": record.value, "rung/share": record.share, "rung/pruned": record.pruned}
        if record.value is not None:
            self._generation.append(record.value)
        return {
            "objective/value": record.value,
            **_signals(record),
            "objective/best": self._best,
            "generation/number": record.generation,
            "driver/gradient_norm": record.gradient_norm,
            **{f"driver/{name}": value for name, value in record.info.items()},
            **{f"part/{name}": value for name, value in record.parts.items()},
            **{f"task/{task}": value for task, value in record.per_task.items()},
            **self._means(record),
        }

    def _select(self, record: Record) -> Mapping[str, Value | None]:
        better = record.value is not None and (self._best is None or record.value < self._best)
        if better and (self._collapsed or COLLAPSE not in record.alarms):
            self._best = record.value
        row: dict[str, Value | None] = {
            "select/value": record.value,
            "objective/best": self._best,
            **{f"select/task/{task}": value for task, value in record.per_task.items()},
            **_metrics("select", record),
            **_signals(record),
        }
        if len(self._generation) > 1:
            values = np.array(self._generation)
            row |= {f"generation/{name}": float(getattr(values, name)()) for name in ("mean", "std", "min", "max")}
        return row

    def _baseline(self, record: Record) -> Mapping[str, Value | None]:
        if record.stage:  # another objective, whose values cannot be compared with those before
            self._best = None
        return {f"baseline/{record.split}/value": record.value, **_metrics(f"baseline/{record.split}", record)}

    def _report(self, record: Record) -> Mapping[str, Value | None]:
        kind, _, rank = (record.name or "").partition(":")  # of a finalist that select did not put first, or the front
        if kind == "front":
            parts = {f"front/{rank}/{record.split}/task/{task}": value for task, value in record.per_task.items()}
            return {**parts, **_metrics(f"front/{rank}/{record.split}", record)}
        if record.split == "select":
            return {}  # scored again for its examples; the same value is there already
        if rank:
            return _metrics(f"finalist/{rank}", record)
        return {"report/value": record.value, **_metrics("report", record)}

    def _means(self, record: Record) -> Mapping[str, Value | None]:
        vector, stage = record.vector, record.stage
        if vector is None or stage >= len(self._columns) or len(vector) != self._dimensions[stage]:
            return {}
        columns = self._columns[stage].items()
        return {f"coefficient/{name}/mean": float(vector[rows].mean()) for name, rows in columns}


def driver_seconds(record: Record, before: Record | None) -> float | None:
    """Seconds between two evaluations of a stage's search that neither took: the driver's, and those of recording.

    None where something else lies between them.

    >>> first = Record(0, "search", "cma", "fit", 1.0, elapsed=10.0)
    >>> driver_seconds(Record(1, "search", "cma", "fit", 1.0, elapsed=13.0, seconds={"evaluate": 2.5}), first)
    0.5
    """
    if before is None or before.stage != record.stage:
        return None
    if record.phase not in ("search", "select") or before.phase not in ("search", "select"):
        return None
    return max(0.0, record.elapsed - before.elapsed - sum(record.seconds.values()))


def _columns(names: VariableNames) -> dict[str, npt.NDArray[np.int64]]:
    """Direction -> the positions of its variables."""
    stretches: dict[str, list[npt.NDArray[np.int64]]] = {}
    for name, at in coefficient_spans(names):
        stretches.setdefault(split_variable(name)[1], []).append(np.arange(at.start, at.stop))
    return {name: np.concatenate(parts) for name, parts in stretches.items()}


def _metrics(prefix: str, record: Record) -> dict[str, Value | None]:
    return {
        f"{prefix}/{task}/{name}": value for task, metrics in record.metrics.items() for name, value in metrics.items()
    }


def _signals(record: Record) -> dict[str, Value | None]:
    alarms = {f"alarm/{kind}": sentence for kind, sentence in record.alarms.items()}
    return {**{f"signal/{record.split}/{name}": value for name, value in record.signals.items()}, **alarms}


def _loggable(value: Value | None) -> TypeGuard[Value]:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))
