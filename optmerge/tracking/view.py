"""A run folder as every view sees it, whether the run is going on, finished, interrupted or failed.

    view = RunView.open(Path("runs/first"))
    view.status, view.evaluations, view.best.value

It reads, and never writes. What result.json does not hold yet is worked out from the trajectory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import yaml

from optmerge.errors import RecipeError, RunError
from optmerge.merging.recipe import Recipe
from optmerge.records import EvaluationCount, Record, Trajectory
from optmerge.runner.finalists import best_iterates
from optmerge.runner.folder import RunFolder
from optmerge.space.names import VariableNames
from optmerge.tracking.coefficients import Coefficients, from_recipe, from_vector
from optmerge.tracking.rows import Row, baseline_family, chosen_names, mean_metric, row_of

Status = Literal["started", "running", "finished", "interrupted", "failed"]


@dataclass(frozen=True, slots=True)
class Point:
    """A score of the search, and how many fit evaluations had been made when it was known."""

    evaluations: int
    value: float
    record: int


@dataclass(frozen=True)
class RunView:
    """A run folder that was read once; open it again to see what has happened since.

    Attributes:
        settings: The resolved search file, as nested mappings.
        manifest: What the run was made of; empty if it had not come that far.
        result: result.json; empty if there is none.
        records: The trajectory, in order.
    """

    folder: Path
    settings: Mapping[str, Any]
    manifest: Mapping[str, Any]
    result: Mapping[str, Any]
    records: tuple[Record, ...] = field(repr=False)

    @classmethod
    def open(cls, folder: Path, *, vectors: bool = True) -> RunView:
        """Read a run.

        Raises:
            RunError: There is no run, or one of its files is damaged.
        """
        run = RunFolder.open(folder)
        try:
            settings = yaml.safe_load((folder / "search.yaml").read_text(encoding="utf-8"))
        except yaml.YAMLError as problem:
            raise RunError(f"{folder / 'search.yaml'} is damaged ({' '.join(str(problem).split())}).") from None
        started = (folder / "trajectory.jsonl").exists()
        return cls(
            folder=folder,
            settings=settings or {},
            manifest=run.read_json("manifest.json") or {},
            result=run.read_json("result.json") or {},
            records=tuple(Trajectory.read(folder, vectors=vectors).records) if started else (),
        )

    @property
    def status(self) -> Status:
        """Where the run stands; one that was killed counts as interrupted."""
        told: Status = self.result.get("status", "started")
        if told in ("started", "running") and not _held(self.folder):
            return "interrupted"
        return told

    @property
    def reason(self) -> str:
        """Why it ended, as far as it is known."""
        told = str(self.result.get("reason") or "")
        if told or self.status != "interrupted":
            return told
        return "the process ended without a word (killed, or the machine stopped)"

    @property
    def name(self) -> str:
        """The run's name: that of its folder."""
        return self.folder.resolve().name

    @cached_property
    def stages(self) -> tuple[Mapping[str, Any], ...]:
        """The settings of each stage of the schedule, as nested mappings; a search without one has a single stage."""
        schedule = self.settings.get("schedule")
        if schedule is None:
            return ({"driver": self.settings.get("driver") or {}},)
        return tuple(schedule)

    @property
    def objectives(self) -> tuple[Mapping[str, Any], ...]:
        """The settings of each stage's objective."""
        return tuple(stage.get("objective") or self.settings.get("objective") or {} for stage in self.stages)

    @property
    def driver(self) -> str:
        """The drivers' names, in the order in which they search."""
        names = [str((stage.get("driver") or {}).get("name", "?")) for stage in self.stages]
        return ", then ".join(name for name, _ in groupby(names))

    @property
    def stage_begins(self) -> tuple[Point, ...]:
        """Where each stage after the first began: its first evaluation or score."""
        begins: dict[int, Point] = {}
        count, evaluations = EvaluationCount(), 0
        for record in self.records:
            if record.phase in ("search", "select") and record.stage not in begins:
                begins[record.stage] = Point(evaluations, math.nan if record.value is None else record.value, record.id)
            evaluations = count(record)
        return tuple(point for stage, point in begins.items() if stage)

    def variables(self, stage: int = 0) -> VariableNames:
        """Names of the coordinates of a stage's vectors; none before the search has begun."""
        stages = self.manifest.get("stages") or [self.manifest]
        return VariableNames((stages[stage] if stage < len(stages) else {}).get("variables") or ())

    @cached_property
    def fit(self) -> tuple[Point, ...]:
        """The fit value of every candidate that has one."""
        return self._points("search")

    @cached_property
    def select(self) -> tuple[Point, ...]:
        """The select value of every iterate that was scored there."""
        return self._points("select")

    @property
    def collapsed(self) -> bool:
        """Whether an iterate that an alarm calls collapsed may be the best."""
        return (self.settings.get("alarms") or {}).get("collapse") == "warn"

    @cached_property
    def best(self) -> Point | None:
        """The iterate with the lowest select value so far (the earliest of equals), none that an alarm ruled out."""
        found = best_iterates(self.records, 1, collapsed=self.collapsed, objectives=self.objectives)
        return next((point for point in self.select if found and point.record == found[0].id), None)

    @property
    def evaluations(self) -> int:
        """Evaluations on the fit split, rungs as their share; baselines do not count."""
        count = EvaluationCount()
        return max((count(record) for record in self.records), default=0)

    @property
    def pruned(self) -> int:
        """Trials that a pruner dropped before they had seen all examples."""
        return sum(record.pruned for record in self.records)

    @property
    def failed(self) -> tuple[Record, ...]:
        """Evaluations that gave no value."""
        return tuple(record for record in self.records if record.error is not None)

    @property
    def budget(self) -> Mapping[str, Any]:
        """The limits of the search."""
        budget: Mapping[str, Any] = self.settings.get("budget") or {}
        return budget

    @property
    def seconds(self) -> float:
        """Seconds of work since the run began, summed over resumes."""
        return self.records[-1].elapsed if self.records else 0.0

    @property
    def search_seconds(self) -> float:
        """Seconds since the baselines were done."""
        before = [record.elapsed for record in self.records if record.phase == "baseline" and not record.stage]
        return max(0.0, self.seconds - (before[-1] if before else 0.0))

    @cached_property
    def baselines(self) -> dict[str, dict[str, Record]]:
        """Baseline -> split -> its record, failed ones left out; by the last objective where stages have their own."""
        found: dict[str, dict[str, Record]] = {}
        for record in self.records:
            if record.phase == "baseline" and record.name and record.error is None:
                found.setdefault(record.name, {})[record.split] = record
        return found

    @cached_property
    def best_baseline(self) -> tuple[str, float] | None:
        """The baseline with the lowest select value, and that value."""
        values = {
            name: splits["select"].value
            for name, splits in self.baselines.items()
            if "select" in splits and splits["select"].value is not None
        }
        return min(((n, v) for n, v in values.items() if v is not None), key=lambda pair: pair[1], default=None)

    @cached_property
    def metric(self) -> str:
        """What the report leads with: accuracy where every task has labels, else agreement with the expert."""
        if "metric" in self.result:
            return str(self.result["metric"])
        reports = [record for record in self.records if record.split == "report" and record.metrics]
        known = bool(reports) and all("accuracy" in metrics for metrics in reports[-1].metrics.values())
        return "accuracy" if known else "agreement"

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The result table: result.json's, or what the trajectory gives so far."""
        if "rows" in self.result:
            return tuple(row_of(entry, self.metric) for entry in self.result["rows"])
        rows = [
            Row(
                name=name,
                kind="baseline",
                family=baseline_family(name),
                select=splits["select"].value if "select" in splits else None,
                report=splits["report"].metrics if "report" in splits else {},
                mean=mean_metric(splits["report"].metrics, self.metric) if "report" in splits else None,
                metric=self.metric,
                record=splits["report"].id if "report" in splits else None,
            )
            for name, splits in self.baselines.items()
            if {"select", "report"} & set(splits)
        ]
        chosen = chosen_names(rows)
        return tuple(replace(row, chosen=row.name in chosen) for row in rows)

    @property
    def finalists(self) -> Sequence[Mapping[str, Any]]:
        """The best iterates by select as result.json tells them, select's choice first; none before the report."""
        found: Sequence[Mapping[str, Any]] = self.result.get("finalists") or []
        return found

    @property
    def search_row(self) -> Row | None:
        """The row of the search, once it has been reported."""
        return next((row for row in self.rows if row.kind == "search"), None)

    @cached_property
    def recipe(self) -> Recipe | None:
        """The best recipe, or None while there is none (or none that can be read)."""
        try:
            return Recipe.load(self.folder / "recipe.yaml")
        except RecipeError:
            return None

    @cached_property
    def coefficients(self) -> Coefficients | None:
        """The best coefficients so far: the recipe's, or those of the best iterate.

        Before there is a recipe, a normalised space has none to show: its variables are no coefficients.
        """
        if self.recipe is not None:
            return from_recipe(self.recipe)
        if self.best is None:
            return None
        best = self.records[self.best.record]
        names, vector = self.variables(best.stage), best.vector
        if vector is None or len(names) != len(vector):
            return None
        if (self.settings.get("space") or {}).get("normalise", "none") != "none":
            return None
        return from_vector(names.compact, vector)

    def _points(self, phase: str) -> tuple[Point, ...]:
        points: list[Point] = []
        count = EvaluationCount()
        for record in self.records:
            evaluations = count(record)
            whole = record.share == 1.0  # a value on a share of the examples is no point of the same curve
            if record.phase == phase and whole and record.error is None and record.value is not None:
                points.append(Point(evaluations, record.value, record.id))
        return tuple(points)


def _held(folder: Path) -> bool:
    """Whether a process is searching in the folder; True where that cannot be told."""
    try:
        import fcntl

        with open(folder / ".lock") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except (ImportError, OSError):
        return True
    return False
